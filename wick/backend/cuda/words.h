// Downloads of a few bytes by a kernel.
//
// A copy engine takes turns with the kernels of a stream: each turn costs several microseconds,
// where a kernel that writes some words to pinned memory costs one. Not for what kernels read: they
// may start early and read ahead (early_launch.cuh).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace wick::cuda {

// Whether download_words takes a copy of so many bytes between such addresses.
bool are_words(size_t bytes, const void* device, const void* pinned);

// To pinned host memory; it is there when the stream has come so far.
void download_words(cudaStream_t stream, const void* device, size_t bytes, void* pinned);

}  // namespace wick::cuda
