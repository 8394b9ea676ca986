// The low-rank half of linear layers of one row: s = x A^T, shared by all blocks of a launch.
//
// A warp of its own in each block has it. The first blocks' shrink A, up to kPieceColumns of a row
// each, and post their sums; each block's waits for those that it needs, while its other warps
// multiply. Blocks post before they wait, and those that post have the smallest numbers, so what is
// waited for always runs.
#pragma once

#include "wick/backend/cuda/linears_kernel.cuh"

namespace wick::cuda {

constexpr int kPieceLoads = 5;                    // of 16 bytes
constexpr int kPieceColumns = 128 * kPieceLoads;  // of a task

struct ShrinkTasks {
  int pieces;                     // that a row of A is cut into
  int tasks;                      // of all adapters; 0: no warp for them
  int first_task[kLinearsTerms];  // of term.s_rank x pieces
  int ranks[kLinearsTerms];       // widest of the term's adapters
  Mailbox mailbox;
};

// A task's sum beside the number of the launch, in one word: whoever finds the number has the sum.
__device__ __forceinline__ void post(uint64_t* slot, float sum, uint32_t launch) {
  const uint64_t word = uint64_t{launch} << 32 | __float_as_uint(sum);
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(slot), "l"(word) : "memory");
}

__device__ __forceinline__ uint64_t look_into(const uint64_t* slot) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(slot) : "memory");
  return word;
}

// A task of the shrink: up to kPieceColumns of a row of A.
struct ShrinkPiece {
  const float* a = nullptr;  // null: the row's adapter does not have this rank
  int begin = 0, count = 0;
};

__device__ __forceinline__ ShrinkPiece piece_of(const LinearsArgs& args, const ShrinkTasks& shrink,
                                                int task) {
  int index = 0;
  while (index + 1 < args.terms && task >= shrink.first_task[index + 1]) {
    ++index;
  }
  const int local = task - shrink.first_task[index];
  const int r = local / shrink.pieces;
  const AdapterView* adapter = adapter_of(args, args.term[index], 0);
  ShrinkPiece piece;
  if (adapter != nullptr && r < adapter->rank) {
    piece.begin = local % shrink.pieces * kPieceColumns;
    piece.count = min(kPieceColumns, args.in - piece.begin);
    piece.a = adapter->a + static_cast<int64_t>(r) * args.in + piece.begin;
  }
  return piece;
}

__device__ __forceinline__ void read_piece(const ShrinkPiece& piece,
                                           float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      factors[i] = *reinterpret_cast<const float4*>(piece.a + k0 + 128 * i);
    }
  }
}

template <class T>
__device__ __forceinline__ float shrink_piece(const T* x, const ShrinkPiece& piece,
                                              const float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x & 31);
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      sum = dot4(load4(x + piece.begin + k0 + 128 * i), factors[i], sum);
    }
  }
  return warp_sum(sum);
}

// low[r] = scaling s[r] of one term, as its tasks are done; writes s too. `posted` has room for a
// sum a task of the term. Several slots are looked into at a time: each look takes as long as a
// read of memory.
template <class T>
__device__ __forceinline__ void gather_low(const LinearsArgs& args, const ShrinkTasks& shrink,
                                           int index, uint32_t launch, bool writes, float* posted,
                                           float* low) {
  constexpr int kLooks = 4;
  const int lane = threadIdx.x & 31;
  const int pieces = shrink.pieces;
  const int count = shrink.ranks[index] * pieces;
  const uint64_t* slots = shrink.mailbox.slots + shrink.first_task[index];
  for (int first = lane; first < count; first += 32 * kLooks) {
    uint64_t words[kLooks];
    bool missing;
    do {
      missing = false;
#pragma unroll
      for (int i = 0; i < kLooks; ++i) {
        if (first + 32 * i < count) {
          words[i] = look_into(slots + first + 32 * i);
        }
      }
#pragma unroll
      for (int i = 0; i < kLooks; ++i) {
        missing =
            missing || (first + 32 * i < count && static_cast<uint32_t>(words[i] >> 32) != launch);
      }
    } while (missing);
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      if (first + 32 * i < count) {
        posted[first + 32 * i] = __uint_as_float(static_cast<uint32_t>(words[i]));
      }
    }
  }
  __syncwarp();
  const TermView& term = args.term[index];
  const AdapterView* adapter = term.adapters > 0 ? adapter_of(args, term, 0) : nullptr;
  for (int r = lane; r < shrink.ranks[index]; r += 32) {
    float sum = 0.0F;
    if (adapter != nullptr && r < adapter->rank) {
      for (int piece = 0; piece < pieces; ++piece) {
        sum += posted[r * pieces + piece];
      }
      if (writes) {
        static_cast<T*>(term.s)[r] = from_float<T>(sum);
      }
      sum *= adapter->scaling;
    }
    low[r] = sum;
  }
  __syncwarp();
}

// This block no longer looks into the mailbox; the last one hands it to the next launch.
__device__ __forceinline__ void leave_mailbox(const Mailbox& mailbox, uint32_t launch) {
  if ((threadIdx.x & 31) == 0 &&
      atomicAdd(&mailbox.state->left, 1) == static_cast<int>(gridDim.x) - 1) {
    mailbox.state->left = 0;
    mailbox.state->launch = launch + 1;
  }
}

}  // namespace wick::cuda
