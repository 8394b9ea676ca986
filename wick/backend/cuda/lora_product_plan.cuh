// How a frozen layer and its adapter are shared out as one product (see lora_product.cuh): tiles,
// and what a block has in shared memory.
#pragma once

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/tensor_copy.cuh"
#include "wick/backend/cuda/warp_roles.cuh"
#include "wick/backend/cuda/wide_products.cuh"

namespace wick::cuda {

constexpr int kProductRows = 128;     // of a block
constexpr int kProductColumns = 256;  // of a block
constexpr int kProductDepth = 64;     // of a step
constexpr int kProductBlocks = 2;     // of a cluster, one row tile after the other
constexpr int kMacroRows = kProductBlocks * kProductRows;
constexpr int kProductGroups = 2;  // that multiply
constexpr int kProductThreads = (1 + kProductGroups) * kGroupThreads;
constexpr int kMostParts = 8;
constexpr int kPartDelay =
    6;  // steps that a tile makes before it needs A, which is just being made

struct ProductMaps {
  CUtensorMap x;  // [T, K], boxes of 128 x 64
  CUtensorMap w;  // [N, K], boxes of 128 x 64
  CUtensorMap a;  // [R, K], boxes of kRanks x 64
  CUtensorMap b;  // [N, R8], boxes of 128 x 64
};

struct ProductCall {
  int T, N, steps;        // along K
  int ranks;              // of s
  int row_tiles;          // of kMacroRows
  int column_tiles;       // of kProductColumns
  int band;               // row tiles that take turns before the column tile changes
  int most_parts;         // up to kMostParts
  const float* bias;      // [N], or null
  __nv_bfloat16* y;       // [T, N]
  __nv_bfloat16* s;       // [T, ranks]
  float* parts;           // [64 rows, part, 16 ranks, 128 lanes, 8]
  unsigned* parts_there;  // [64 rows]; zeros at first
};

struct ProductArgs {
  ProductMaps maps;
  ProductCall call;
};

// A tile of a cluster.
struct ProductTile {
  int row_tile, column_tile;
  int parts;               // that s of these rows comes in
  int first_step;          // of K; the others follow, and then those before it
  int low_begin, low_end;  // steps (in the order made) that are multiplied with A; none: equal
};

// Tile `index` of the order. Parts of a row tile are made in the same round of the clusters, else
// there is one alone: no tile ever waits for a later one of its own cluster.
__device__ __forceinline__ ProductTile product_tile(const ProductCall& call, int index,
                                                    int clusters) {
  const int of_band = call.band * call.column_tiles;
  const int band = index / of_band;
  const int first = band * of_band;
  const int rows = min(call.band, call.row_tiles - band * call.band);
  ProductTile tile;
  tile.column_tile = (index - first) / rows;
  tile.row_tile = band * call.band + (index - first) % rows;
  tile.parts = min(max((clusters - first % clusters) / rows, 1), call.most_parts);
  tile.first_step = tile.low_begin = tile.low_end = 0;
  if (tile.column_tile < tile.parts) {
    const int begin = tile.column_tile * call.steps / tile.parts;
    const int count = (tile.column_tile + 1) * call.steps / tile.parts - begin;
    tile.low_begin = min(kPartDelay, call.steps - count);
    tile.low_end = tile.low_begin + count;
    tile.first_step = (begin - tile.low_begin + call.steps) % call.steps;
  }
  return tile;
}

// Shared memory of a block: stages, each x, W and A; then s of a tile; rows on their way to y;
// barriers.
template <int kRanks>
struct ProductShared {
  static constexpr int kStages = kRanks > 16 ? 3 : 4;
  static constexpr int kXBytes = kProductRows * kPanelRowBytes;
  static constexpr int kWBytes = kProductColumns * kPanelRowBytes;
  static constexpr int kABytes = kRanks * kPanelRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes + kABytes;
  static constexpr int kLowAt = kStages * kStageBytes;
  static constexpr int kLowBytes = kGroupRows * kRanks * 2;  // of a group
  static constexpr int kRowsAt = kLowAt + kProductGroups * kLowBytes;
  static constexpr int kRowsBytes = 16 * kPanelRowBytes;  // of a warp
  static constexpr int kBarriersAt = kRowsAt + 4 * kProductGroups * kRowsBytes;
  static constexpr int kBytes =
      kBarriersAt + 8 * (2 * kStages + 2 * kProductGroups + 1) + kPanelAlignment;
  static_assert(kBytes <= 227 * 1024);

  uint32_t at;  // a multiple of kPanelAlignment

  __device__ uint32_t x(int stage) const { return at + stage * kStageBytes; }
  __device__ uint32_t w(int stage) const { return x(stage) + kXBytes; }
  __device__ uint32_t a(int stage) const { return w(stage) + kWBytes; }
  __device__ uint32_t low(int group) const { return at + kLowAt + group * kLowBytes; }
  __device__ uint32_t rows(int warp) const { return at + kRowsAt + warp * kRowsBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(kStages + stage); }
  __device__ uint32_t low_full(int group) const { return full(2 * kStages + group); }
  __device__ uint32_t low_empty(int group) const { return low_full(kProductGroups + group); }
  __device__ uint32_t part_stored() const { return low_full(2 * kProductGroups); }
};

// All threads, first: no block of the cluster goes on before the barriers of both are ready.
template <int kRanks>
__device__ __forceinline__ void begin_product(const ProductShared<kRanks>& shared) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < ProductShared<kRanks>::kStages; ++stage) {
      start_barrier_of(shared.full(stage), 1);
      start_barrier_of(shared.empty(stage), kProductBlocks * kProductGroups * 4);
    }
    for (int group = 0; group < kProductGroups; ++group) {
      start_barrier_of(shared.low_full(group), 32);
      start_barrier_of(shared.low_empty(group), kGroupThreads);
    }
    start_barrier_of(shared.part_stored(), kProductGroups * kGroupThreads);
    show_barriers_to_copies();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
}

// All threads, last: the other block may still copy into this one's memory or arrive at its
// barriers.
__device__ __forceinline__ void end_product() {
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

}  // namespace wick::cuda
