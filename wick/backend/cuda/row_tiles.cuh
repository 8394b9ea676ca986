// Programs of one row: products by tensor cores.
//
// A tile is up to 16 of a block's channels (of a gated pair: up to 8 of each) and comes whole or in
// pieces of its columns; pieces go to the two groups of warps by turns. Each warp of a group
// multiplies every eighth run of 32 columns, so a tile costs a warp a few instructions where a dot
// product of a channel would wait for each of its steps. x is each of the eight columns of the
// right operand: every lane group then has the sums. A product does not mind the order of its inner
// index, so fragments are read 16 bytes of a row at a time.
//
// A norm's factor 1/rms is a number of the row: products are of x w, and the sums are scaled.
#pragma once

#include "wick/backend/cuda/row_ring.cuh"

namespace wick::cuda {

// All workers wait for each other; with the warp that has the low-rank half, where there is one.
__device__ __forceinline__ void meet_workers() {
  __syncwarp();
  asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory");
}
__device__ __forceinline__ void meet_all(bool adapted) {
  __syncwarp();
  if (adapted) {
    asm volatile("bar.sync 2, %0;" ::"n"(kWorkers + 32) : "memory");
  } else {
    meet_workers();
  }
}

// Where a lane reads: its run of x, and of its two rows of the tile (from the stage's begin).
struct TileLane {
  uint32_t x, low, high;
};

// sums += COUNT of the warp's runs.
template <int COUNT>
__device__ __forceinline__ void multiply_runs(const TileLane& at, float (&sums)[2][4]) {
  uint4 x[COUNT];
  uint4 low[COUNT];
  uint4 high[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    x[i] = read_shared(at.x + i * kStrideOfRuns);
    low[i] = read_shared(at.low + i * kStrideOfRuns);
    high[i] = read_shared(at.high + i * kStrideOfRuns);
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    multiply_16x8x16(low[i].x, high[i].x, low[i].y, high[i].y, x[i].x, x[i].y, sums[0]);
    multiply_16x8x16(low[i].z, high[i].z, low[i].w, high[i].w, x[i].z, x[i].w, sums[1]);
  }
}

__device__ __forceinline__ void multiply_piece(TileLane at, int runs, float (&sums)[2][4]) {
#pragma unroll 1
  for (; runs >= 2; runs -= 2) {
    multiply_runs<2>(at, sums);
    at = {at.x + 2 * kStrideOfRuns, at.low + 2 * kStrideOfRuns, at.high + 2 * kStrideOfRuns};
  }
  if (runs > 0) {
    multiply_runs<1>(at, sums);
  }
}

// Leaves the warp's sums of a tile; of the columns of the accumulators those of the row's own
// parity count (see lane_of).
__device__ __forceinline__ void leave_tile(const float (&sums)[2][4], int split, uint32_t parts) {
  const int row = static_cast<int>(threadIdx.x % 32) / 4;
  if (threadIdx.x % 4 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float even = sums[0][2 * half] + sums[1][2 * half];
      const float odd = sums[0][2 * half + 1] + sums[1][2 * half + 1];
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(parts + 4 * (row + 8 * half) * split),
                   "f"(row % 2 == 0 ? even : odd)
                   : "memory");
    }
  }
}

// Rows that a stage does not have are taken from its last: nobody asks for their sums. Where rows
// lie whole multiples of all banks apart, odd ones are read with neighbouring runs exchanged, and
// so is x for the odd columns of the right operand.
__device__ __forceinline__ TileLane lane_of(const LinearsPhase& phase, uint32_t x) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % kGroupWarps;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane / 4;
  // Of a gated pair the second term's rows follow the first's.
  const int last_row = phase.tile_channels - 1;
  const int high = phase.gated ? phase.tile_channels + min(row, last_row) : min(row + 8, last_row);
  const int flip = phase.row_bytes % 128 == 0 ? row % 2 : 0;
  const uint32_t at = (warp ^ flip) * kRunBytes + 16 * (lane % 4);
  return {x + at, min(row, last_row) * phase.row_bytes + at, high * phase.row_bytes + at};
}

// A warp's runs of a piece of `columns`.
__device__ __forceinline__ int runs_of(int columns) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % kGroupWarps;
  return static_cast<int>(static_cast<unsigned>(columns / kRunColumns + kGroupWarps - 1 - warp) /
                          kGroupWarps);
}

// A warp's part of a phase's products, found ahead of the row.
struct TileWork {
  TileLane lane;
  uint32_t parts;  // shared memory: of the warp's first tile
  int items;
  int pieces, columns, in;
  int split;
  int stages, stage_bytes;
  int runs;       // of the warp in a piece that is not the last
  StagePlace at;  // its first piece
};

__device__ __forceinline__ TileWork tile_work(const LinearsPhase& phase, const BlockShare& share,
                                              uint32_t x, uint32_t parts,
                                              const RowProgramArgs& program) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  TileWork work{
      lane_of(phase, x), parts,       share.items,    phase.pieces,        phase.columns,
      phase.in,          phase.split, program.stages, program.stage_bytes, runs_of(phase.columns),
      share.place};
  hold(work.stages);
  hold(work.stage_bytes);
  work.at.advance(warp / kGroupWarps, work.stages);
  const int first_tile = work.pieces == 1 ? warp / kGroupWarps : 0;
  work.parts += 4 * (first_tile * kTileRows * work.split + warp % work.split);
  hold(work.lane.x);
  hold(work.lane.low);
  hold(work.lane.high);
  hold(work.parts);
  hold(work.items);
  hold(work.pieces);
  hold(work.columns);
  hold(work.in);
  hold(work.split);
  hold(work.runs);
  hold(work.at.stage);
  hold(work.at.round);
  return work;
}

// What a worker's warp does of a phase: leaves its sums of all tiles.
__device__ __forceinline__ void multiply_tiles(const TileWork& work, uint32_t ring,
                                               RowShared& shared) {
  const int group = static_cast<int>(threadIdx.x) / 32 / kGroupWarps;
  StagePlace at = work.at;
  float sums[2][4] = {};
  int piece = work.pieces == 1 ? 0 : group;
  uint32_t parts = work.parts;
#pragma unroll 1
  for (int item = group; item < work.items; item += kRowGroups) {
    const uint32_t full = shared_address(shared.full + at.stage);
    wait_for_barrier(full, at.round % 2);
    const uint32_t from = ring + at.stage * work.stage_bytes;
    const int column = piece * work.columns;
    const int left = work.in - column;
    const int runs = left >= work.columns ? work.runs : runs_of(left);
    multiply_piece({work.lane.x + 2 * column, from + work.lane.low, from + work.lane.high}, runs,
                   sums);
    arrive(shared_address(shared.empty + at.stage));
    piece += kRowGroups;
    if (piece >= work.pieces) {
      leave_tile(sums, work.split, parts);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[0][i] = sums[1][i] = 0.0F;
      }
      do {
        piece -= work.pieces;
        parts += 4 * kTileRows * work.split;
      } while (piece >= work.pieces);
    }
    at.advance(kRowGroups, work.stages);
  }
}

}  // namespace wick::cuda
