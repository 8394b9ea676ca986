// Programs of one row: how blocks hand values to each other without waiting for each other.
//
// A word has a value and the tag of its phase (rank_pieces.cuh): who finds the tag has the value,
// with one trip through memory, where a barrier and a reading after it would take three (NCCL's LL
// protocol does the same). Rows are posted as pairs of bf16.
//
// Words of phase p are written again in phase p + 3. A block that posts then has what it needs of
// p + 2. Attention needs a head's alone, from some blocks, but each of those has posted with all of
// p + 1 before it, so every block has posted in p + 1 and has read what it needed of p.
#pragma once

#include "wick/backend/cuda/rank_pieces.cuh"
#include "wick/backend/cuda/row_phase.cuh"

namespace wick::cuda {

// COUNT runs of four neighbours of a posted row, each of two words that lie together (`from` null:
// zeros), once all are there.
template <int COUNT>
__device__ __forceinline__ void await_fours(const uint64_t* const (&from)[COUNT], uint32_t tag,
                                            uint2 (&values)[COUNT]) {
  bool missing;
  do {
    uint64_t words[COUNT][2];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      words[i][0] = words[i][1] = uint64_t{tag} << 32;
      if (from[i] != nullptr) {
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(words[i][0]), "=l"(words[i][1])
                     : "l"(from[i])
                     : "memory");
      }
    }
    missing = false;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      missing = missing || static_cast<uint32_t>(words[i][0] >> 32) != tag ||
                static_cast<uint32_t>(words[i][1] >> 32) != tag;
      values[i] = {static_cast<uint32_t>(words[i][0]), static_cast<uint32_t>(words[i][1])};
    }
  } while (missing);
}

// Keeps a value in its register: the compiler does not work it out again where it is used, nor read
// it again from the kernel's parameters, which takes as long as a read of memory where the block
// has waited before.
__device__ __forceinline__ void hold(int& value) {
  asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void hold(uint32_t& value) {
  asm volatile("" : "+r"(value));
}
template <class T>
__device__ __forceinline__ void hold(T*& value) {
  asm volatile("" : "+l"(value));
}

// Of one phase: what it may read, and where it posts.
struct RowWords {
  const RowExchange& exchange;
  uint64_t* rows;  // exchange.rows
  uint32_t tag;
  int phase;

  __device__ __forceinline__ uint32_t posted_tag() const { return tag - 1; }
  // The row of the phase before.
  __device__ __forceinline__ const uint64_t* posted() const {
    return rows + (phase + RowExchange::kTurns - 1) % RowExchange::kTurns * RowExchange::kRowWords;
  }
  __device__ __forceinline__ uint64_t* posts() const {
    return rows + phase % RowExchange::kTurns * RowExchange::kRowWords;
  }
  __device__ __forceinline__ uint64_t* sums() const {
    return exchange.sums + phase % RowExchange::kTurns * RowExchange::kSumWords;
  }
};

// This block needs no word any more; the last one hands them to the next program.
__device__ __forceinline__ void leave_exchange(const RowExchange& exchange, uint32_t first_tag,
                                               int phases) {
  if (atomicAdd(&exchange.state->left, 1) == static_cast<int>(gridDim.x) - 1) {
    exchange.state->left = 0;
    exchange.state->tag = first_tag + static_cast<uint32_t>(phases);
  }
}

}  // namespace wick::cuda
