// Linear layers of one row of bf16, by tensor cores (compute capability 9.0).
//
// A block takes up to 16 of its channels at a time (a gated pair: 8 of each): a tile, which comes
// whole or in pieces of its columns through a ring in shared memory that all warps read
// (linears_row_tile_ring.cuh). Each warp multiplies every eighth run of 32 columns, so a tile costs
// a warp a few instructions where a dot product of a channel would wait for each of its steps. x is
// each of the eight columns of the right operand: every lane group then has the sums. A product
// does not mind the order of its inner index, so fragments are read 16 bytes of a row at a time.
//
// A norm's factor 1/rms is a number of the row: products are of x w, and the sums are scaled.
#pragma once

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/linears_row_norm.cuh"
#include "wick/backend/cuda/linears_row_tile_ends.cuh"
#include "wick/backend/cuda/linears_row_tile_ring.cuh"

namespace wick::cuda {

// Where a lane reads: its run of x, and of its two rows of the tile (from the stage's begin).
struct TileLane {
  uint32_t x, low, high;
};

// sums += COUNT of the warp's runs.
template <int COUNT, bool HIGH>
__device__ __forceinline__ void multiply_runs(const TileLane& at, float (&sums)[2][4]) {
  uint4 x[COUNT];
  uint4 low[COUNT];
  uint4 high[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    x[i] = read_shared(at.x + i * kStrideOfRuns);
    low[i] = read_shared(at.low + i * kStrideOfRuns);
    high[i] = HIGH ? read_shared(at.high + i * kStrideOfRuns) : uint4{0, 0, 0, 0};
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    multiply_16x8x16(low[i].x, high[i].x, low[i].y, high[i].y, x[i].x, x[i].y, sums[0]);
    multiply_16x8x16(low[i].z, high[i].z, low[i].w, high[i].w, x[i].z, x[i].w, sums[1]);
  }
}

template <bool HIGH>
__device__ __forceinline__ void multiply_piece(TileLane at, int runs, float (&sums)[2][4]) {
#pragma unroll 1
  for (; runs >= 2; runs -= 2) {
    multiply_runs<2, HIGH>(at, sums);
    at = {at.x + 2 * kStrideOfRuns, at.low + 2 * kStrideOfRuns, at.high + 2 * kStrideOfRuns};
  }
  if (runs > 0) {
    multiply_runs<1, HIGH>(at, sums);
  }
}

// Leaves the warp's sums of a tile, of which `channels` are the block's, for end_rows. Of the
// columns of the accumulators those of the row's own parity count (see lane_of).
template <int CHANNELS>
__device__ __forceinline__ void leave_tile(const float (&sums)[2][4], int channels, float* parts) {
  const int lane = threadIdx.x & 31;
  if (lane % 4 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = lane / 4 + (CHANNELS == 1 ? 8 * half : 0);
      const float even = sums[0][2 * half] + sums[1][2 * half];
      const float odd = sums[0][2 * half + 1] + sums[1][2 * half + 1];
      if (n < channels) {
        parts[n * kLinearsWarps * CHANNELS + (CHANNELS == 1 ? 0 : half)] =
            lane / 4 % 2 == 0 ? even : odd;
      }
    }
  }
}

// x w as the products take it, in shared memory, by all threads of the block; the first block
// writes the sum. Returns 1/rms.
__device__ __forceinline__ float weigh_row(const RowLinearsArgs& args, const float* weight,
                                           __nv_bfloat16* x) {
  __shared__ float squares_of_warp[kRowLinearsThreads / 32];
  const int in = args.linears.in;
  const int stride = 8 * row_workers();
  const auto* a = static_cast<const uint4*>(args.norm.a);
  const auto* b = static_cast<const uint4*>(args.norm.b);
  float squares = 0.0F;
#pragma unroll 1
  for (int c = 8 * static_cast<int>(threadIdx.x); c < in; c += stride) {
    const uint4 of_a = a[c / 8];
    float values[8];
    if (b != nullptr) {
      const uint4 of_b = b[c / 8];
      float other[8];
      load8(reinterpret_cast<const __nv_bfloat16*>(&of_a), values);
      load8(reinterpret_cast<const __nv_bfloat16*>(&of_b), other);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        values[j] = to_float(__float2bfloat16_rn(values[j] + other[j]));
      }
      if (blockIdx.x == 0) {
        store8(values, static_cast<__nv_bfloat16*>(args.norm.sum) + c);
      }
    } else {
      load8(reinterpret_cast<const __nv_bfloat16*>(&of_a), values);
    }
    float weights[8];
    load8(weight + c, weights);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      squares = fmaf(values[j], values[j], squares);
      values[j] *= weights[j];
    }
    store8(values, x + c);
  }
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) {
    squares_of_warp[threadIdx.x / 32] = squares;
  }
  meet_workers();
  squares = 0.0F;
  for (int warp = 0; warp < row_workers() / 32; ++warp) {
    squares += squares_of_warp[warp];
  }
  return 1.0F / sqrtf(squares / static_cast<float>(in) + args.norm.eps);
}

// The row into shared memory, by all threads of the block.
__device__ __forceinline__ void copy_row(const RowLinearsArgs& args, __nv_bfloat16* x) {
  constexpr int kAtOnce = 3;
  const auto* from = static_cast<const uint4*>(args.linears.x);
  auto* to = reinterpret_cast<uint4*>(x);
  const int count = args.linears.in / 8;
  const int threads = row_workers();
  for (int base = static_cast<int>(threadIdx.x); base < count; base += kAtOnce * threads) {
    uint4 words[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (base + i * threads < count) {
        words[i] = from[base + i * threads];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (base + i * threads < count) {
        to[base + i * threads] = words[i];
      }
    }
  }
  meet_workers();
}

// The row, once it is there, in shared memory; returns what the sums are to be multiplied with.
template <bool NORM>
__device__ __forceinline__ float await_tiles_row(const RowLinearsArgs& args,
                                                 unsigned char* shared) {
  wait_for_copies<0>();  // of what this thread will use of the norm's weights and of B
  wait_for_previous();
  auto* x = reinterpret_cast<__nv_bfloat16*>(shared + args.x_at);
  if constexpr (NORM) {
    return weigh_row(args, reinterpret_cast<const float*>(shared + args.norm_weight_at), x);
  }
  copy_row(args, x);
  return 1.0F;
}

// Rows that a stage does not have are taken from its last: nobody asks for their sums. Where rows
// lie whole multiples of all banks apart, odd ones are read with neighbouring runs exchanged, and
// so is x for the odd columns of the right operand.
template <int CHANNELS>
__device__ __forceinline__ TileLane lane_of(const RowLinearsArgs& args, uint32_t x) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x & 31;
  const int row = lane / 4;
  const int last_row = CHANNELS == 2 ? kTileRows - 1 : args.tile_channels - 1;
  const int flip = args.row_bytes % 128 == 0 ? row % 2 : 0;
  const uint32_t at = (warp ^ flip) * kRunBytes + 16 * (lane % 4);
  return {x + at, min(row, last_row) * args.row_bytes + at,
          min(row + 8, last_row) * args.row_bytes + at};
}

// What the first warps of a block do.
template <int CHANNELS, bool NORM>
__device__ __forceinline__ void multiply_tiles(const RowLinearsArgs& args, int index,
                                               unsigned char* shared, TileRing& barriers) {
  uint32_t warp = threadIdx.x / 32;
  uint32_t lane = threadIdx.x & 31;
  const RowShare share = share_of(args, index);
  const int total = (share.channels + args.tile_channels - 1) / args.tile_channels * args.pieces;
  const int stages = args.stages;
  const uint32_t ring = shared_address(shared);
  uint32_t full = shared_address(barriers.full);
  fetch_ends<CHANNELS>(args, share, shared_address(shared + args.ends_at));
  const TileEnd<CHANNELS> end = end_of<CHANNELS>(args, share);
  const TileLane first = lane_of<CHANNELS>(args, ring + args.x_at);
  const bool high = CHANNELS == 2 || args.tile_channels > 8;
  float* parts = reinterpret_cast<float*>(shared + args.parts_at) + warp * CHANNELS;
  const float scale = await_tiles_row<NORM>(args, shared);
  if (threadIdx.x == 0) {
    atomicExch_block(&barriers.hurries, 1);
  }

  hold(full);
  hold(warp);
  hold(lane);
  const int in = args.linears.in;
  const int columns = args.columns;
  const int stage_bytes = args.stage_bytes;
  float sums[2][4] = {};
  int column = 0;
  int stage = 0;
  uint32_t phase = 0;
  int channels = share.channels;  // from this tile on
#pragma unroll 1
  for (int item = 0; item < total; ++item) {
    const uint32_t barrier = full + 8 * stage;
    wait_for_barrier(barrier, phase);
    const uint32_t at = ring + stage * stage_bytes;
    const TileLane here{first.x + 2 * column, first.low + at, first.high + at};
    const int runs =
        (min(columns, in - column) / kRunColumns + kLinearsWarps - 1 - static_cast<int>(warp)) /
        kLinearsWarps;
    if (high) {
      multiply_piece<true>(here, runs, sums);
    } else {
      multiply_piece<false>(here, runs, sums);
    }
    column += columns;
    if (column >= in) {
      column = 0;
      leave_tile<CHANNELS>(sums, channels, parts);
      parts += args.tile_channels * kLinearsWarps * CHANNELS;
      channels -= args.tile_channels;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[0][i] = sums[1][i] = 0.0F;
      }
    }
    if (total > stages) {
      __syncwarp();  // all lanes have read the stage
      if (lane == 0) {
        arrive(barrier + 8 * kMostTileStages);
      }
    }
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
  end_tiles<CHANNELS>(args, share, end, scale, shared);
}

}  // namespace wick::cuda
