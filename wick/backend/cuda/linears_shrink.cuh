// The low-rank half of linear layers of one row: s = x A^T, shared by all blocks of a launch.
//
// A warp of its own in each block has it. The first blocks' shrink A, up to kPieceColumns of a row
// each, and post their sums; each block's waits for those that it needs, while its other warps
// multiply. Blocks post before they wait, and those that post have the smallest numbers, so what is
// waited for always runs.
#pragma once

#include "wick/backend/cuda/linears_kernel.cuh"
#include "wick/backend/cuda/rank_pieces.cuh"

namespace wick::cuda {

struct ShrinkTasks {
  int pieces;                     // that a row of A is cut into
  int tasks;                      // of all adapters; 0: no warp for them
  int first_task[kLinearsTerms];  // of term.s_rank x pieces
  int ranks[kLinearsTerms];       // widest of the term's adapters
  Mailbox mailbox;
};

__device__ __forceinline__ RankPiece piece_of(const LinearsArgs& args, const ShrinkTasks& shrink,
                                              int task) {
  int index = 0;
  while (index + 1 < args.terms && task >= shrink.first_task[index + 1]) {
    ++index;
  }
  const int local = task - shrink.first_task[index];
  const int r = local / shrink.pieces;
  const AdapterView* adapter = adapter_of(args, args.term[index], 0);
  RankPiece piece;
  if (adapter != nullptr && r < adapter->rank) {
    piece.begin = local % shrink.pieces * kPieceColumns;
    piece.count = min(kPieceColumns, args.in - piece.begin);
    piece.a = adapter->a + static_cast<int64_t>(r) * args.in + piece.begin;
  }
  return piece;
}

// low[r] = scaling s[r] of one term, as its tasks are done; writes s too. `posted` has room for a
// sum a task of the term.
template <class T>
__device__ __forceinline__ void gather_low(const LinearsArgs& args, const ShrinkTasks& shrink,
                                           int index, uint32_t launch, bool writes, float* posted,
                                           float* low) {
  const int lane = threadIdx.x & 31;
  const int pieces = shrink.pieces;
  gather_sums(shrink.mailbox.slots + shrink.first_task[index], shrink.ranks[index] * pieces, launch,
              posted);
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
