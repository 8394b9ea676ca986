// Kernels that start while the one before them ends: programmatic dependent launch (compute
// capability 9.0; below it, kernels follow each other as ever).
//
// A kernel launched so may be on the device as soon as all blocks of the one before have called
// `let_next_start`, so its start costs nothing and its first reads are on their way. Until
// `wait_for_previous` it may read only what no kernel has just written: weights, adapters and what
// was uploaded; and it must not write. Every thread that goes on to read more calls it, so what is
// done after it comes after all earlier kernels.
#pragma once

#include <cuda_runtime.h>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Launches a kernel that calls `wait_for_previous` in all threads; `early`: let it start early.
template <class... Parameters, class... Arguments>
void launch_early(const Context& context, bool early, void (*kernel)(Parameters...), dim3 grid,
                  dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = early && context.compute_capability >= 90 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace wick::cuda
