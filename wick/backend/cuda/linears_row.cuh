// Linear layers of one row, with their adapters, in one launch: bound by reading the weights once.
//
// A block takes a run of output channels, and each of its warps some of them, or where there are
// few and long ones a part of each: its weights come through a ring in shared memory
// (weight_ring.cuh) that is on its way before the row is there (early_launch.cuh). A block takes so
// little room that those of the next few launches lie beside it and fill their rings meanwhile:
// that, not this kernel's own speed, hides the wait for the row. A gated pair takes two channels a
// warp and writes act(g) u. A row that is a norm is normed by each block for itself.
//
// Rows of bf16 have programs instead, from compute capability 9.0 on (row_phase.cuh), unless they
// have several adapters to choose from.
//
// The low-rank half has a warp of its own in each block (linears_shrink.cuh). The others leave what
// they multiplied in shared memory and bring it together with s B^T at the end, so that no weight
// waits for s.
#pragma once

#include "wick/backend/cuda/linears_row_ends.cuh"
#include "wick/backend/cuda/linears_row_norm.cuh"

namespace wick::cuda {

// What the warp after those that multiply does.
template <class T, int CHANNELS, bool NORM>
__device__ __forceinline__ void shrink_and_gather(const RowLinearsArgs& args, int index,
                                                  unsigned char* shared) {
  const auto blocks = static_cast<int>(gridDim.x);
  const auto first = static_cast<int>(blockIdx.x);
  const ShrinkTasks& shrink = args.shrink;
  float4 factors[kPieceLoads];
  RankPiece piece;
  if (first < shrink.tasks) {
    piece = piece_of(args.linears, shrink, first);
    read_piece(piece, factors);
  }
  const T* x = await_row<T, NORM>(args, 0, shared);
  const uint32_t launch = shrink.mailbox.state->launch;
  for (int task = first; task < shrink.tasks; task += blocks) {
    if (task != first) {
      piece = piece_of(args.linears, shrink, task);
      read_piece(piece, factors);
    }
    const float sum = shrink_piece(x, piece, factors);
    if ((threadIdx.x & 31) == 0) {
      post_word(shrink.mailbox.slots + task, __float_as_uint(sum), launch);
    }
  }
  float* low = reinterpret_cast<float*>(shared + args.low_at);
  float* posted = reinterpret_cast<float*>(shared + args.posted_at);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    gather_low<T>(args.linears, shrink, index + i, launch,
                  first == args.linears.term[index].first_block, posted,
                  low + i * args.linears.width);
  }
  __syncthreads();
  leave_mailbox(shrink.mailbox, launch);
}

// What the other warps do.
template <class T, class W, int CHANNELS, bool NORM>
__device__ __forceinline__ void multiply_and_store(const RowLinearsArgs& args, int index,
                                                   unsigned char* shared) {
  __shared__ __align__(8) uint64_t barriers_of_warp[kLinearsWarps][kMostStages];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x & 31;
  const RowShare share = share_of(args, index);
  const int ring_at = warp * args.stages * args.stage_bytes;
  const uint32_t ring = shared_address(shared) + ring_at;
  const uint32_t barriers = shared_address(barriers_of_warp[warp]);
  if (kBulkCopies) {
    if (lane == 0) {
      for (int stage = 0; stage < args.stages; ++stage) {
        start_barrier(barriers + 8 * stage);
      }
    }
    show_barriers_to_copies();
    __syncwarp();
  }
  fetch_ends<CHANNELS>(args, share, shared_address(shared + args.ends_at));
  float biases[CHANNELS];  // of the first channels
  read_biases(args, share, static_cast<int>(threadIdx.x) / kEndThreads, biases);
  RowCursor ahead{share.group, 0, 0};
  for (int stage = 0; stage < args.stages; ++stage) {
    fetch<W, CHANNELS>(args, share, ahead, ring, barriers);
    ahead.advance<W>(share, args.stages);
  }
  const T* x = await_row<T, NORM>(args, kBulkCopies ? 0 : args.stages, shared) + share.begin;
  float* parts = reinterpret_cast<float*>(shared + args.parts_at);
  float sums[CHANNELS] = {};
  RowCursor at{share.group, 0, 0};
  for (; at.n < share.channels; at.advance<W>(share, args.stages)) {
    if (kBulkCopies) {
      wait_for_barrier(barriers + 8 * at.stage, at.phase);
    } else {
      wait_for_all_copies_but(args.stages - 1);
    }
    multiply_chunks<T, W, CHANNELS>(x + at.column, share.count - at.column,
                                    shared + ring_at + at.stage * args.stage_bytes,
                                    args.channel_bytes, sums);
    if (kBulkCopies) {
      follow_by_copies();
      __syncwarp();  // all lanes have read the stage
    }
    fetch<W, CHANNELS>(args, share, ahead, ring, barriers);
    ahead.advance<W>(share, args.stages);
    if (at.ends<W>(share)) {
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        const float sum = warp_sum(sums[i]);
        if (lane == 0) {
          parts[(at.n * args.split + share.part) * CHANNELS + i] = sum;
        }
        sums[i] = 0.0F;
      }
    }
  }
  end_rows<T, CHANNELS>(args, share, biases, shared);
}

// CHANNELS is 1, or 2 for a gated pair: channel n of terms 0 and 1.
template <class T, class W, int CHANNELS, bool NORM>
__global__ void __maxnreg__(kRowLinearsRegisters)
    linears_row(const __grid_constant__ RowLinearsArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  int index = 0;
  while (CHANNELS == 1 && index + 1 < args.linears.terms &&
         static_cast<int>(blockIdx.x) >= args.linears.term[index + 1].first_block) {
    ++index;
  }
  let_next_start();
  float* norm_weight = reinterpret_cast<float*>(memory + args.norm_weight_at);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if constexpr (NORM) {
    fetch_norm_weight<T>(args, norm_weight);
  }
  if (warp == kLinearsWarps) {
    shrink_and_gather<T, CHANNELS, NORM>(args, index, memory);
  } else {
    multiply_and_store<T, W, CHANNELS, NORM>(args, index, memory);
  }
}

}  // namespace wick::cuda
