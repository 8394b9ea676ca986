// Programs of one row: the low-rank half of linear layers, s = x A^T, shared by all blocks.
//
// A warp of its own in each block has it. Blocks shrink A by turns, up to kPieceColumns of a row
// each, and post their sums; each block's warp waits for those that it needs, while the others
// multiply.
#pragma once

#include "wick/backend/cuda/row_linears.cuh"

namespace wick::cuda {

__device__ __forceinline__ RankPiece piece_of(const LinearsPhase& phase, int task) {
  int index = 0;
  while (index + 1 < phase.terms && task >= phase.term[index + 1].first_task) {
    ++index;
  }
  const int local = task - phase.term[index].first_task;
  const int r = local / phase.shrink_pieces;
  RankPiece piece;
  piece.begin = (local - r * phase.shrink_pieces) * kPieceColumns;
  piece.count = min(kPieceColumns, phase.in - piece.begin);
  piece.a = phase.term[index].a + static_cast<int64_t>(r) * phase.in + piece.begin;
  return piece;
}

// low[r] = scaling s[r] of a term, s[r] `scale` times what was posted, as its tasks are done, and 0
// for ranks up to the sixteens; the term's first block writes s too. `posted` has room for a sum a
// task of the term.
__device__ __forceinline__ void gather_low(const LinearsPhase& phase, const RowTerm& term,
                                           const uint64_t* sums, uint32_t tag, float scale,
                                           float* posted, float* low) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  gather_sums(sums + term.first_task, term.rank * phase.shrink_pieces, tag, posted);
#pragma unroll 1
  for (int r = lane; r < phase.width; r += 32) {
    float sum = 0.0F;
#pragma unroll 1
    for (int piece = 0; r < term.rank && piece < phase.shrink_pieces; ++piece) {
      sum += posted[r * phase.shrink_pieces + piece];
    }
    sum *= scale;
    if (term.s != nullptr && r < term.rank && static_cast<int>(blockIdx.x) == term.first_block) {
      term.s[r] = from_float<__nv_bfloat16>(sum);
    }
    low[r] = sum * term.scaling;
  }
  __syncwarp();
}

// What the warp of the low-rank half does of a phase that has adapters.
__device__ __noinline__ void run_shrink(const RowWords words, const LinearsPhase& phase,
                                        const BlockShare& share, unsigned char* work,
                                        RowShared& shared) {
  auto blocks = static_cast<int>(gridDim.x);
  auto task = static_cast<int>(blockIdx.x);
  uint64_t* sums = words.sums();
  const auto* x = reinterpret_cast<const __nv_bfloat16*>(work);
  hold(blocks);
  hold(sums);
  // A's first piece is read ahead of the row; of many pieces, as in large models, each has the time
  // that the others multiply.
  bool waits = true;
#pragma unroll 1
  for (;; task += blocks) {
    RankPiece piece{};
    if (task < phase.tasks) {
      piece = piece_of(phase, task);
    }
    float4 factors[kPieceLoads];
    read_piece(piece, factors);
    if (waits) {
      meet_all(true);
      waits = false;
    }
    if (task >= phase.tasks) {
      break;
    }
    const float sum = shrink_piece(x, piece, factors);
    if (threadIdx.x % 32 == 0) {
      post_word(sums + task, __float_as_uint(sum), words.tag);
    }
  }
  const float scale = norm_scale(phase, shared);
  auto* low = reinterpret_cast<float*>(work + phase.work.low);
  auto* posted = reinterpret_cast<float*>(work + phase.work.posted);
#pragma unroll 1
  for (int i = 0; i < (phase.gated ? 2 : 1); ++i) {
    gather_low(phase, phase.term[share.index + i], sums, words.tag, scale, posted,
               low + i * phase.width);
  }
  meet_all(true);
}

}  // namespace wick::cuda
