// A frozen linear layer and its adapter as one product, for compute capability 9.0.
//
// y[T,N] = x W^T + s B'^T with s = x A^T and B' = scaling B: the ranks are one more step along K. A
// block makes a tile of 128 x 256 of y: one warp loads steps of 64 of K into a ring of stages
// (TMA), and two groups of four warps multiply 64 rows each (wgmma). Two blocks of a cluster have
// the same columns and share the loads of W (multicast). The blocks stay, and go from tile to tile.
//
// s comes out of the same pass over x: the first `parts` column tiles of a row tile multiply an
// equal share of K with A as well, each beginning with its share, and leave their sums in memory. A
// warp a group adds them up while the products run, and they are the last step of every tile.
// Everything is added in an order that shapes and the number of clusters alone decide.
#pragma once

#include "wick/backend/cuda/lora_product_ranks.cuh"
#include "wick/backend/cuda/product_store.cuh"

namespace wick::cuda {

// One thread loads all. x and W it reads ahead of its wait: the kernel before, which makes A and B'
// ready, has waited for x before this one could start.
template <int kRanks>
__device__ __forceinline__ void load_product(const ProductShared<kRanks>& shared,
                                             const ProductMaps& maps, const ProductCall& call,
                                             int cluster, int clusters) {
  using Shared = ProductShared<kRanks>;
  constexpr uint32_t kBoth = (1U << kProductBlocks) - 1;
  constexpr int kHalfBytes = Shared::kWBytes / kProductBlocks;
  const int rank = cluster_rank();
  RingPlace<Shared::kStages> place;
  bool adapter_there = false;
  const int tiles = call.row_tiles * call.column_tiles;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int row = (tile.row_tile * kProductBlocks + rank) * kProductRows;
    const int w_row =
        tile.column_tile * kProductColumns + rank * (kProductColumns / kProductBlocks);
    int k = tile.first_step;
#pragma unroll 1
    for (int i = 0; i < call.steps; ++i) {
      const bool low = i >= tile.low_begin && i < tile.low_end;
      if (low && !adapter_there) {
        wait_for_previous();
        adapter_there = true;
      }
      const uint32_t full = shared.full(place.stage);
      wait_for_barrier(shared.empty(place.stage), place.round ^ 1);
      expect_bytes(full, Shared::kXBytes + Shared::kWBytes + (low ? Shared::kABytes : 0));
      copy_box(shared.x(place.stage), maps.x, k * kProductDepth, row, full);
      copy_box_to(kBoth, shared.w(place.stage) + rank * kHalfBytes, maps.w, k * kProductDepth,
                  w_row, full);
      if (low) {
        copy_box(shared.a(place.stage), maps.a, k * kProductDepth, 0, full);
      }
      place.advance();
      k = k + 1 == call.steps ? 0 : k + 1;
    }
    if (!adapter_there) {
      wait_for_previous();
      adapter_there = true;
    }
    const uint32_t full = shared.full(place.stage);
    wait_for_barrier(shared.empty(place.stage), place.round ^ 1);
    expect_bytes(full, Shared::kWBytes);
    copy_box_to(kBoth, shared.w(place.stage) + rank * kHalfBytes, maps.b, 0, w_row, full);
    place.advance();
  }
}

// A group of four warps that multiplies 64 rows.
template <int kRanks>
struct ProductGroup {
  using Shared = ProductShared<kRanks>;

  const Shared& shared;
  const ProductCall& call;
  int group;
  RingPlace<Shared::kStages> place{};
  int read = -1;  // the stage that the products under way, but for the newest, read
  uint32_t low_round = 0;

  __device__ uint64_t x() const {
    return panel_descriptor(shared.x(place.stage) + group * kGroupPanelBytes);
  }
  __device__ uint64_t w() const { return panel_descriptor(shared.w(place.stage)); }

  __device__ void release(int stage) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane < kProductBlocks) {
      arrive_at(shared.empty(stage), lane);
    }
  }

  __device__ void start_step(bool add, float (&sums)[kProductColumns / 2]) {
    wait_for_barrier(shared.full(place.stage), place.round);
    begin_products();
#pragma unroll
    for (int k = 0; k < kProductDepth / 16; ++k) {
      multiply_panels(x() + 2 * k, w() + 2 * k, add || k > 0, sums);
    }
  }

  // And low (+)= x A^T. In turns: short products that follow each other wait for each other's sums.
  __device__ void start_step(bool add, bool add_low, float (&sums)[kProductColumns / 2],
                             float (&low)[kRanks / 2]) {
    wait_for_barrier(shared.full(place.stage), place.round);
    const uint64_t a = panel_descriptor(shared.a(place.stage));
    begin_products();
#pragma unroll
    for (int k = 0; k < kProductDepth / 16; ++k) {
      multiply_panels(x() + 2 * k, w() + 2 * k, add || k > 0, sums);
      multiply_panels(x() + 2 * k, a + 2 * k, add_low || k > 0, low);
    }
  }

  // The step before the newest is done.
  __device__ void finish_step() {
    commit_products();
    wait_for_products<1>();
    if (read >= 0) {
      release(read);
    }
    read = place.stage;
    place.advance();
  }

  // The first steps of a tile that makes a part of s, of whose rows this lane has `row`. Returns
  // how many.
  __device__ int make_part(const ProductTile& tile, int row, float (&sums)[kProductColumns / 2]) {
    int i = 0;
    for (; i < tile.low_begin; ++i) {
      start_step(i > 0, sums);
      finish_step();
    }
    float low[kRanks / 2];
    for (; i < tile.low_end; ++i) {
      start_step(i > 0, i > tile.low_begin, sums, low);
      finish_step();
    }
    if (i < call.steps) {  // one more under way while the part is stored
      start_step(true, sums);
      finish_step();
      ++i;
    } else {
      wait_for_products<0>();
    }
    settle(low);
    store_part(shared, call, row / kGroupRows, tile.column_tile, low);
    return i;
  }

  // sums += s B'^T; the first column tile stores s.
  __device__ void add_adapter(const ProductTile& tile, int row,
                              float (&sums)[kProductColumns / 2]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    wait_for_previous();  // before the first store
    wait_for_barrier(shared.low_full(group), low_round);
    low_round ^= 1;
    wait_for_barrier(shared.full(place.stage), place.round);
    uint32_t low[kRanks / 16][4];
    const uint32_t from =
        shared.low(group) + static_cast<uint32_t>(threadIdx.x % kGroupThreads) * 16;
#pragma unroll
    for (int k = 0; k < kRanks / 16; ++k) {
      const uint4 words = read_shared(from + k * kGroupThreads * 16);
      low[k][0] = words.x, low[k][1] = words.y, low[k][2] = words.z, low[k][3] = words.w;
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < kRanks / 16; ++k) {
      add_registers(low[k], w() + 2 * k, sums);
    }
    finish_step();
    arrive(shared.low_empty(group));
    if (tile.column_tile == 0) {
#pragma unroll
      for (int k = 0; k < kRanks / 16; ++k) {
        store_low(call, row, 16 * k + 2 * (lane % 4), low[k]);
      }
    }
  }

  __device__ void run(int cluster, int clusters) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x % kGroupThreads) / 32;
    const int tiles = call.row_tiles * call.column_tiles;
    for (int index = cluster; index < tiles; index += clusters) {
      const ProductTile tile = product_tile(call, index, clusters);
      const int warp_row = (tile.row_tile * kProductBlocks + cluster_rank()) * kProductRows +
                           group * kGroupRows + warp * 16;
      const int row = warp_row + lane / 4;
      float sums[kProductColumns / 2];
      read = -1;
      int i = tile.low_end > 0 ? make_part(tile, row, sums) : 0;
#pragma unroll 1
      for (; i < call.steps; ++i) {
        start_step(i > 0, sums);
        finish_step();
      }
      add_adapter(tile, row, sums);
      wait_for_products<0>();
      settle(sums);
      release(read);
      store_product<false>(call, warp_row, tile.column_tile * kProductColumns,
                           shared.rows(4 * group + warp), {}, sums);
    }
  }
};

// Grid: clusters of two blocks, at most as many as the device holds at once.
template <int kRanks>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kProductThreads), 1)
    lora_product_kernel(const __grid_constant__ ProductArgs args) {
#if WICK_GROUP_THREADS(1) == 1
  extern __shared__ __align__(1024) unsigned char unaligned[];
  const ProductShared<kRanks> shared{shared_address(align_panels(unaligned))};
  const int clusters = static_cast<int>(gridDim.x) / kProductBlocks;
  const int cluster = static_cast<int>(blockIdx.x) / kProductBlocks;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  constexpr int kProductRegisters = 224;
  begin_product(shared);
  if (group == 0) {
    leave_registers<kRegistersOfThree - kProductGroups * kProductRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const bool first_lane = threadIdx.x % 32 == 0;
    if (warp < kProductGroups) {
      gather_low(shared, args.call, warp, cluster, clusters);
    } else if (warp == kProductGroups && first_lane) {
      load_product(shared, args.maps, args.call, cluster, clusters);
    } else if (first_lane) {
      publish_parts(shared, args.call, cluster, clusters);
    }
  } else {
    take_registers<kProductRegisters>();
    ProductGroup<kRanks> products{shared, args.call, group - 1};
    products.run(cluster, clusters);
  }
  end_product();
#endif
}

}  // namespace wick::cuda
