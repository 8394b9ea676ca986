// The gradient of an adapted layer's input as one product: dx[T,K] (+)= dy W + ds A, for compute
// capability 9.0.
//
// As lora_product.cuh, but W [N,K] and A [R,K] are right operands as they lie in memory: panels of
// 64 columns, each 64 rows of the sum. ds and A are one more step.
#pragma once

#include "wick/backend/cuda/product_store.cuh"

namespace wick::cuda {

struct GradientMaps {
  CUtensorMap dy;  // [T, N], boxes of 128 x 64
  CUtensorMap w;   // [N, K], boxes of 64 x 64
  CUtensorMap ds;  // [T, R], as dy
  CUtensorMap a;   // [R, K], as w
};

// call.N is K here, the width of dx; call.steps are of N.
struct GradientArgs {
  GradientMaps maps;
  ProductCall call;
  bool accumulate;
};

using GradientShared = ProductShared<0>;

// One thread loads all.
__device__ __forceinline__ void load_gradient(const GradientShared& shared,
                                              const GradientArgs& args, int cluster, int clusters) {
  constexpr uint32_t kBoth = (1U << kProductBlocks) - 1;
  constexpr int kPanels = kProductColumns / 64 / kProductBlocks;  // of a block's share
  const ProductCall& call = args.call;
  const int rank = cluster_rank();
  RingPlace<GradientShared::kStages> place;
  const int tiles = call.row_tiles * call.column_tiles;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int row = (tile.row_tile * kProductBlocks + rank) * kProductRows;
    const int column = tile.column_tile * kProductColumns;
#pragma unroll 1
    for (int i = 0; i <= call.steps; ++i) {
      const bool last = i == call.steps;
      const int depth = last ? 0 : i * kProductDepth;
      const uint32_t full = shared.full(place.stage);
      wait_for_barrier(shared.empty(place.stage), place.round ^ 1);
      expect_bytes(full, GradientShared::kXBytes + GradientShared::kWBytes);
      copy_box(shared.x(place.stage), last ? args.maps.ds : args.maps.dy, depth, row, full);
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const int panel = rank * kPanels + p;
        copy_box_to(kBoth, shared.w(place.stage) + panel * kGroupPanelBytes,
                    last ? args.maps.a : args.maps.w, column + 64 * panel, depth, full);
      }
      place.advance();
    }
  }
}

// A group of four warps multiplies 64 rows.
__device__ __forceinline__ void multiply_gradient(const GradientShared& shared,
                                                  const GradientArgs& args, int group, int cluster,
                                                  int clusters) {
  const ProductCall& call = args.call;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x % kGroupThreads) / 32;
  RingPlace<GradientShared::kStages> place;
  const auto release = [&](int stage) {
    if (lane < kProductBlocks) {
      arrive_at(shared.empty(stage), lane);
    }
  };
  const int tiles = call.row_tiles * call.column_tiles;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int row = (tile.row_tile * kProductBlocks + cluster_rank()) * kProductRows +
                    group * kGroupRows + warp * 16;
    float sums[kProductColumns / 2];
    int read = -1;
#pragma unroll 1
    for (int i = 0; i <= call.steps; ++i) {
      wait_for_barrier(shared.full(place.stage), place.round);
      const uint64_t left = panel_descriptor(shared.x(place.stage) + group * kGroupPanelBytes);
      const uint64_t right = rows_descriptor(shared.w(place.stage));
      begin_products();
#pragma unroll
      for (int k = 0; k < kProductDepth / 16; ++k) {
        multiply_rows(left + 2 * k, right + 128 * k, i > 0 || k > 0, sums);
      }
      commit_products();
      wait_for_products<1>();
      if (read >= 0) {
        release(read);
      }
      read = place.stage;
      place.advance();
    }
    wait_for_products<0>();
    settle(sums);
    release(read);
    const int column = tile.column_tile * kProductColumns;
    if (args.accumulate) {
      store_product<true>(call, row, column, shared.rows(4 * group + warp), sums);
    } else {
      store_product<false>(call, row, column, shared.rows(4 * group + warp), sums);
    }
  }
}

// Grid: clusters of two blocks, at most as many as the device holds at once.
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kProductThreads), 1)
    lora_product_dx_kernel(const __grid_constant__ GradientArgs args) {
#if WICK_GROUP_THREADS(1) == 1
  extern __shared__ __align__(1024) unsigned char unaligned[];
  const GradientShared shared{shared_address(align_panels(unaligned))};
  const int clusters = static_cast<int>(gridDim.x) / kProductBlocks;
  const int cluster = static_cast<int>(blockIdx.x) / kProductBlocks;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  begin_product(shared);
  wait_for_previous();
  if (group == 0) {
    keep_registers_of_loads();
    if (threadIdx.x == 0) {
      load_gradient(shared, args, cluster, clusters);
    }
  } else {
    take_registers_of_products();
    multiply_gradient(shared, args, group - 1, cluster, clusters);
  }
  end_product();
#endif
}

}  // namespace wick::cuda
