// Asked of one kernel, since all are compiled for the same devices.
#include "wick/backend/cuda/compiled.h"

#include "wick/backend/cuda/context.h"

namespace wick::cuda {
namespace {

__global__ void asked_kernel() {}

}  // namespace

int compiled_capability() {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, asked_kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // or the next check would find it
    return 0;
  }
  check_cuda(status, "what the kernels were compiled for");
  return attributes.ptxVersion;
}

}  // namespace wick::cuda
