// Questions to the CUDA runtime that need no stream, and the meaning of its errors.
#include "wick/backend/cuda/device.h"

#include <cuda_runtime.h>

#include "wick/backend/cuda/context.h"
#include "wick/base/error.h"

namespace wick::cuda {

namespace {

// After these the context is beyond repair: every later call fails too.
bool device_is_lost(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDevicesUnavailable:
    case cudaErrorExternalDevice:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]] {
    return;
  }
  cudaGetLastError();  // or the next check would find it again
  const std::string reason =
      fmt::format("cuda: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
  if (device_is_lost(status)) {
    throw DeviceLost(reason + "; the device is lost to this process: start it again");
  }
  throw Error(reason);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string reason_for_no_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status);
}

namespace {

// "cuda:0 (NVIDIA H100), cuda:1 (NVIDIA H100)"
std::string names_of_devices(int count) {
  std::string names;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device), "device properties");
    names += fmt::format("{}cuda:{} ({})", device > 0 ? ", " : "", device, properties.name);
  }
  return names;
}

}  // namespace

void choose_device(int device) {
  const int count = device_count();
  check(count > 0, "cuda: no device answers: {}", reason_for_no_device());
  check(device < count, "there is no device cuda:{}: this machine has {}", device,
        names_of_devices(count));
  check_cuda(cudaSetDevice(device), "choosing a device");
}

std::vector<std::string> describe_devices() {
  std::vector<std::string> lines;
  int driver = 0;
  int runtime = 0;
  const int count = device_count();
  if (count == 0) {
    return lines;
  }
  check_cuda(cudaDriverGetVersion(&driver), "driver version");
  check_cuda(cudaRuntimeGetVersion(&runtime), "runtime version");
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    check_cuda(cudaGetDeviceProperties(&properties, device), "device properties");
    check_cuda(cudaSetDevice(device), "choosing a device");
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "memory of a device");
    const auto gib = [](size_t bytes) { return static_cast<double>(bytes) / 1073741824.0; };
    lines.push_back(fmt::format(
        "{}: {:.1f} GiB, {:.1f} GiB free; compute capability {}.{}; driver {}, runtime {}",
        properties.name, gib(total_bytes), gib(free_bytes), properties.major, properties.minor,
        version_text(driver), version_text(runtime)));
  }
  check_cuda(cudaSetDevice(0), "choosing a device");
  return lines;
}

}  // namespace wick::cuda
