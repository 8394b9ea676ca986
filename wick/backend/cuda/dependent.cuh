// Kernels that start before the kernel ahead of them in the stream has ended (programmatic
// dependent launch, CUDA programming guide; compute capability 9.0, below it they wait as any
// kernel does): their first loads then run under its last blocks.
#pragma once

#include <cuda_runtime.h>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {

// All blocks of this kernel have come here, or ended: the next kernel may start.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The kernel before has ended, and what it wrote is seen.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel that calls wait_for_previous ahead of all that depends on the kernel before.
template <class... Args>
void launch_dependent(const Context& context, void (*kernel)(Args...), dim3 grid, unsigned threads,
                      size_t shared_bytes, const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = context.compute_capability >= 90 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace wick::cuda
