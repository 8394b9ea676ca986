// One small block a copy.
#include "wick/backend/cuda/words.h"

#include <cassert>
#include <cstdint>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {
namespace {

using Word = uint32_t;
constexpr size_t kMostWords = 32;

__global__ void copy_kernel(const Word* from, Word* to) {
  to[threadIdx.x] = from[threadIdx.x];
}

bool starts_a_word(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % sizeof(Word) == 0;
}

}  // namespace

bool are_words(size_t bytes, const void* device, const void* pinned) {
  return bytes > 0 && bytes <= kMostWords * sizeof(Word) && bytes % sizeof(Word) == 0 &&
         starts_a_word(device) && starts_a_word(pinned);
}

void download_words(cudaStream_t stream, const void* device, size_t bytes, void* pinned) {
  assert(are_words(bytes, device, pinned));
  copy_kernel<<<1, static_cast<unsigned>(bytes / sizeof(Word)), 0, stream>>>(
      static_cast<const Word*>(device), static_cast<Word*>(pinned));
  check_launch("download");
}

}  // namespace wick::cuda
