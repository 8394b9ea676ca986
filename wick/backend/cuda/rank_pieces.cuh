// Rows of A in pieces that a warp multiplies, and the words in which blocks hand each other values.
//
// A word of eight bytes has a value and a tag that says when it was written, and is written and
// read at once: who finds the tag has the value.
#pragma once

#include "wick/backend/cuda/lora_adapters.cuh"

namespace wick::cuda {

constexpr int kPieceLoads = 5;                    // of 16 bytes
constexpr int kPieceColumns = 128 * kPieceLoads;  // of a task

// A task of the shrink: up to kPieceColumns of a row of A.
struct RankPiece {
  const float* a = nullptr;  // null: the row's adapter does not have this rank
  int begin = 0, count = 0;
};

__device__ __forceinline__ void read_piece(const RankPiece& piece, float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    factors[i] = k0 + 128 * i < piece.count
                     ? __ldg(reinterpret_cast<const float4*>(piece.a + k0 + 128 * i))
                     : float4{0.0F, 0.0F, 0.0F, 0.0F};
  }
}

// The warp's sum, in all lanes.
template <class T>
__device__ __forceinline__ float shrink_piece(const T* x, const RankPiece& piece,
                                              const float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x % 32);
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      sum = dot4(load4(x + piece.begin + k0 + 128 * i), factors[i], sum);
    }
  }
  return warp_sum(sum);
}

__device__ __forceinline__ void post_word(uint64_t* to, uint32_t value, uint32_t tag) {
  const uint64_t word = uint64_t{tag} << 32 | value;
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

__device__ __forceinline__ uint64_t look_at_word(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

// COUNT words, once all are there; of `from[i]` null the value is 0.
template <int COUNT>
__device__ __forceinline__ void await_words(const uint64_t* const (&from)[COUNT], uint32_t tag,
                                            uint32_t (&values)[COUNT]) {
  bool missing;
  do {
    uint64_t words[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      words[i] = from[i] == nullptr ? uint64_t{tag} << 32 : look_at_word(from[i]);
    }
    missing = false;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      missing = missing || static_cast<uint32_t>(words[i] >> 32) != tag;
      values[i] = static_cast<uint32_t>(words[i]);
    }
  } while (missing);
}

// `count` words of sums to `to`, in shared memory, by a warp. Several are looked at a time: each
// look takes as long as a read of memory.
__device__ __forceinline__ void gather_sums(const uint64_t* words, int count, uint32_t tag,
                                            float* to) {
  constexpr int kLooks = 4;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x % 32); first < count; first += 32 * kLooks) {
    const uint64_t* from[kLooks];
    uint32_t values[kLooks];
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const int task = first + 32 * i;
      from[i] = task < count ? words + task : nullptr;
    }
    await_words(from, tag, values);
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      if (first + 32 * i < count) {
        to[first + 32 * i] = __uint_as_float(values[i]);
      }
    }
  }
  __syncwarp();
}

}  // namespace wick::cuda
