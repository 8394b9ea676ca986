// A frozen linear layer and its adapter as one product, for compute capability 9.0.
//
// y[T,N] = x W^T + s B'^T with s = x A^T and B' = scaling B: the ranks are one more step along K. A
// block makes a tile of 128 x 256 of y: one warp loads steps of 64 of K into a ring of stages (TMA), and
// two groups of four warps multiply 64 rows each (wgmma). Two blocks of a cluster have the same
// columns and share the loads of W (multicast). The blocks stay, and go from tile to tile.
//
// s comes out of the same pass over x: the first `parts` column tiles of a row tile multiply an equal
// share of K with A as well, each beginning with its share, and leave their sums in memory. A
// warp a group adds them up while the products run, and they are the last step of every tile.
// Everything is added in an order that shapes and the number of clusters alone decide.
//
// y leaves the registers by way of shared memory of each warp's own, so that whole lines are written.
#pragma once

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/tensor_copy.cuh"
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
constexpr int kPartDelay = 6;  // steps that a tile makes before it needs A, which is just being made

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

// A tile of a cluster.
struct ProductTile {
  int row_tile, column_tile;
  int parts;              // that s of these rows comes in
  int first_step;         // of K; the others follow, and then those before it
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

// Shared memory of a block: stages, each x, W and A; then s of a tile; rows on their way to y; barriers.
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
  static constexpr int kBytes = kBarriersAt + 8 * (2 * kStages + 2 * kProductGroups + 1) +
                                kPanelAlignment;
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

// A place in the ring, and how often it came round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;  // its lowest bit

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      round ^= 1;
    }
  }
};

// One thread loads all.
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
      const bool low = kRanks > 0 && i >= tile.low_begin && i < tile.low_end;
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
    if constexpr (kRanks > 0) {
      if (!adapter_there) {
        wait_for_previous();
        adapter_there = true;
      }
      wait_for_barrier(shared.empty(place.stage), place.round ^ 1);
      expect_bytes(shared.full(place.stage), Shared::kWBytes);
      copy_box_to(kBoth, shared.w(place.stage) + rank * kHalfBytes, maps.b, 0, w_row,
                  shared.full(place.stage));
      place.advance();
    }
  }
}

// One warp a group adds the parts of s up, as the left operand of the last step: uint4 of lane
// `slot` of 128 at [16 ranks][slot].
template <int kRanks>
__device__ __forceinline__ void gather_low(const ProductShared<kRanks>& shared,
                                           const ProductCall& call, int group, int cluster,
                                           int clusters) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int tiles = call.row_tiles * call.column_tiles;
  wait_for_previous();
  uint32_t round = 0;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int64_t rows64 =
        (tile.row_tile * kProductBlocks + cluster_rank()) * (kProductRows / 64) + group;
    if (lane == 0) {
      unsigned there;
      while (true) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(there)
                     : "l"(call.parts_there + rows64)
                     : "memory");
        if (there >= static_cast<unsigned>(tile.parts)) {
          break;
        }
        __nanosleep(100);
      }
    }
    __syncwarp();
    wait_for_barrier(shared.low_empty(group), round ^ 1);
    constexpr int kSlots = kRanks / 16 * kGroupThreads;
    const float* parts = call.parts + rows64 * call.most_parts * kSlots * 8;
#pragma unroll 1
    for (int slot = lane; slot < kSlots; slot += 32) {
      float sums[8] = {};
#pragma unroll 4
      for (int part = 0; part < tile.parts; ++part) {
        const auto* from = reinterpret_cast<const float4*>(parts + (part * kSlots + slot) * 8);
        const float4 first = __ldcg(from);
        const float4 second = __ldcg(from + 1);
        sums[0] += first.x, sums[1] += first.y, sums[2] += first.z, sums[3] += first.w;
        sums[4] += second.x, sums[5] += second.y, sums[6] += second.z, sums[7] += second.w;
      }
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared.low(group) + slot * 16),
                   "r"(pack_bf16(sums[0], sums[1])), "r"(pack_bf16(sums[2], sums[3])),
                   "r"(pack_bf16(sums[4], sums[5])), "r"(pack_bf16(sums[6], sums[7]))
                   : "memory");
    }
    arrive(shared.low_full(group));
    round ^= 1;
  }
}

// The sums of a group's 64 rows with its share of A, for gather_low.
template <int kRanks>
__device__ __forceinline__ void store_part(const ProductShared<kRanks>& shared,
                                           const ProductCall& call, int64_t rows64, int part,
                                           const float (&low)[kRanks / 2]) {
  constexpr int kSlots = kRanks / 16 * kGroupThreads;
  const int slot = static_cast<int>(threadIdx.x % kGroupThreads);
  float* to = call.parts + ((rows64 * call.most_parts + part) * kSlots + slot) * 8;
#pragma unroll
  for (int i = 0; i < kRanks / 2; i += 8) {
    auto* quads = reinterpret_cast<float4*>(to + i * kGroupThreads);
    quads[0] = {low[i], low[i + 1], low[i + 2], low[i + 3]};
    quads[1] = {low[i + 4], low[i + 5], low[i + 6], low[i + 7]};
  }
  arrive(shared.part_stored());
}

// One thread tells the device of what both groups have stored: its fence would hold up the groups.
template <int kRanks>
__device__ __forceinline__ void publish_parts(const ProductShared<kRanks>& shared,
                                              const ProductCall& call, int cluster, int clusters) {
  wait_for_previous();  // which cleared parts_there
  uint32_t round = 0;
  const int tiles = call.row_tiles * call.column_tiles;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    if (tile.low_end > 0) {
      wait_for_barrier(shared.part_stored(), round);
      round ^= 1;
      __threadfence();
      const int rows64 =
          (tile.row_tile * kProductBlocks + cluster_rank()) * (kProductRows / kGroupRows);
      for (int group = 0; group < kProductGroups; ++group) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(call.parts_there + rows64 +
                                                                     group)
                     : "memory");
      }
    }
  }
}

// A warp's 16 rows of a tile from `row` on, by way of `memory`.
__device__ __forceinline__ void store_product(const ProductCall& call, int row, int column,
                                              uint32_t memory,
                                              const float (&sums)[kProductColumns / 2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int chunk = lane % 8;
  // Matrices of 8 x 8: both halves of the rows, of two neighbouring eights of columns.
  const uint32_t to = memory + lane % 16 * kPanelRowBytes;
#pragma unroll
  for (int panel = 0; panel < kProductColumns / 64; ++panel) {
    __syncwarp();  // the panel before has been read
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int eight = 8 * panel + 2 * pair + i;
        const int n = column + 8 * eight + 2 * (lane % 4);
        float2 bias = {0.0F, 0.0F};
        if (call.bias != nullptr && n < call.N) {
          bias = *reinterpret_cast<const float2*>(call.bias + n);
        }
        words[2 * i] = pack_bf16(sums[4 * eight] + bias.x, sums[4 * eight + 1] + bias.y);
        words[2 * i + 1] = pack_bf16(sums[4 * eight + 2] + bias.x, sums[4 * eight + 3] + bias.y);
      }
      store_matrices(to + ((2 * pair + lane / 16) ^ chunk) * 16, words);
    }
    __syncwarp();
    const int n = column + 64 * panel + 8 * chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 4 * i + lane / 8;
      const uint4 words = load_shared16(memory + r * kPanelRowBytes + (chunk ^ r % 8) * 16);
      if (row + r < call.T && n < call.N) {
        *reinterpret_cast<uint4*>(call.y + static_cast<int64_t>(row + r) * call.N + n) = words;
      }
    }
  }
}

// What this lane has of s in a left operand: rows `row` and `row` + 8, ranks r, r + 1, r + 8, r + 9.
__device__ __forceinline__ void store_low(const ProductCall& call, int row, int r,
                                          const uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = row + 8 * (i % 2);
    const int rank = r + 8 * (i / 2);
    __nv_bfloat16* to = call.s + static_cast<int64_t>(t) * call.ranks + rank;
    if (t < call.T && rank < call.ranks) {
      to[0] = __ushort_as_bfloat16(static_cast<unsigned short>(low[i] & 0xffffU));
    }
    if (t < call.T && rank + 1 < call.ranks) {
      to[1] = __ushort_as_bfloat16(static_cast<unsigned short>(low[i] >> 16));
    }
  }
}

// The products of one group.
template <int kRanks>
__device__ __forceinline__ void multiply_product(const ProductShared<kRanks>& shared,
                                                 const ProductCall& call, int group, int cluster,
                                                 int clusters) {
  using Shared = ProductShared<kRanks>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = static_cast<int>(threadIdx.x % kGroupThreads) / 32 * 16;
  RingPlace<Shared::kStages> place;
  uint32_t low_round = 0;
  int read = -1;  // the stage that the products under way but one read
  const auto release = [&](int stage) {
    if (lane < kProductBlocks) {
      arrive_at(shared.empty(stage), lane);
    }
  };
  const int tiles = call.row_tiles * call.column_tiles;
  float sums[kProductColumns / 2];
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int row = (tile.row_tile * kProductBlocks + cluster_rank()) * kProductRows +
                    group * kGroupRows + warp_row + lane / 4;
    bool add = false;
    read = -1;
    const auto start_step = [&] {
      wait_for_barrier(shared.full(place.stage), place.round);
      const uint64_t x = panel_descriptor(shared.x(place.stage) + group * kGroupPanelBytes);
      const uint64_t w = panel_descriptor(shared.w(place.stage));
      begin_products();
#pragma unroll
      for (int k = 0; k < kProductDepth / 16; ++k) {
        multiply_panels(x + 2 * k, w + 2 * k, add || k > 0, sums);
      }
      add = true;
    };
    const auto finish_step = [&] {
      commit_products();
      wait_for_products<1>();
      if (read >= 0) {
        release(read);
      }
      read = place.stage;
      place.advance();
    };
    int i = 0;
    if constexpr (kRanks > 0) {
      if (tile.low_end > 0) {
        for (; i < tile.low_begin; ++i) {
          start_step();
          finish_step();
        }
        float low[kRanks / 2];
        for (; i < tile.low_end; ++i) {
          wait_for_barrier(shared.full(place.stage), place.round);
          const uint64_t x = panel_descriptor(shared.x(place.stage) + group * kGroupPanelBytes);
          const uint64_t w = panel_descriptor(shared.w(place.stage));
          const uint64_t a = panel_descriptor(shared.a(place.stage));
          begin_products();
          // In turns: short products that follow each other would wait for each other's sums.
#pragma unroll
          for (int k = 0; k < kProductDepth / 16; ++k) {
            multiply_panels(x + 2 * k, w + 2 * k, add || k > 0, sums);
            multiply_panels(x + 2 * k, a + 2 * k, i > tile.low_begin || k > 0, low);
          }
          add = true;
          finish_step();
        }
        if (i < call.steps) {  // one more under way while the sums are stored
          start_step();
          finish_step();
          ++i;
        } else {
          wait_for_products<0>();
        }
        settle(low);
        wait_for_previous();
        store_part(shared, call, row / kGroupRows, tile.column_tile, low);
      }
    }
#pragma unroll 1
    for (; i < call.steps; ++i) {
      start_step();
      finish_step();
    }
    if constexpr (kRanks > 0) {
      if (index == cluster) {
        wait_for_previous();
      }
      wait_for_barrier(shared.low_full(group), low_round);
      wait_for_barrier(shared.full(place.stage), place.round);
      uint32_t low[kRanks / 16][4];
      const uint32_t from =
          shared.low(group) + static_cast<uint32_t>(threadIdx.x % kGroupThreads) * 16;
#pragma unroll
      for (int k = 0; k < kRanks / 16; ++k) {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(low[k][0]), "=r"(low[k][1]), "=r"(low[k][2]), "=r"(low[k][3])
                     : "r"(from + k * kGroupThreads * 16)
                     : "memory");
      }
      const uint64_t b = panel_descriptor(shared.w(place.stage));
      begin_products();
#pragma unroll
      for (int k = 0; k < kRanks / 16; ++k) {
        add_registers(low[k], b + 2 * k, sums);
      }
      finish_step();
      __syncwarp();
      if (lane == 0) {
        arrive(shared.low_empty(group));
      }
      low_round ^= 1;
      if (tile.column_tile == 0) {
#pragma unroll
        for (int k = 0; k < kRanks / 16; ++k) {
          store_low(call, row, 16 * k + 2 * (lane % 4), low[k]);
        }
      }
    }
    wait_for_products<0>();
    settle(sums);
    release(read);
    store_product(call, row - lane / 4, tile.column_tile * kProductColumns,
                  shared.rows(4 * group + warp_row / 16), sums);
  }
}

// Grid: clusters of two blocks, at most as many as the device holds at once.
template <int kRanks>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kProductThreads), 1)
    lora_product_kernel(const __grid_constant__ ProductMaps maps,
                        const __grid_constant__ ProductCall call) {
#if WICK_GROUP_THREADS(1) == 1
  using Shared = ProductShared<kRanks>;
  extern __shared__ __align__(1024) unsigned char unaligned[];
  const Shared shared{shared_address(align_panels(unaligned))};
  const int clusters = static_cast<int>(gridDim.x) / kProductBlocks;
  const int cluster = static_cast<int>(blockIdx.x) / kProductBlocks;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shared::kStages; ++stage) {
      start_barrier_of(shared.full(stage), 1);
      start_barrier_of(shared.empty(stage), kProductBlocks * kProductGroups * 4);
    }
    for (int of = 0; of < kProductGroups; ++of) {
      start_barrier_of(shared.low_full(of), 32);
      start_barrier_of(shared.low_empty(of), 4);
    }
    start_barrier_of(shared.part_stored(), kProductGroups * kGroupThreads);
    show_barriers_to_copies();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  let_next_start();
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) {
        load_product(shared, maps, call, cluster, clusters);
      }
    } else if (kRanks > 0 && warp <= kProductGroups) {
      if constexpr (kRanks > 0) {
        gather_low(shared, call, warp - 1, cluster, clusters);
      }
    } else if (kRanks > 0 && threadIdx.x % 32 == 0) {
      if constexpr (kRanks > 0) {
        publish_parts(shared, call, cluster, clusters);
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    multiply_product(shared, call, group - 1, cluster, clusters);
  }
  // The other block may still copy into this one's memory or arrive at its barriers.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
#endif
}

}  // namespace wick::cuda
