// s = x A^T on its way through one product (see lora_product.cuh): from the groups that multiply a
// share of K with A to memory, and from there to all blocks that multiply it with B.
#pragma once

#include "wick/backend/cuda/lora_product_plan.cuh"

namespace wick::cuda {

// The sums of a group's 64 rows with its share of A, for gather_low.
template <int kRanks>
__device__ __forceinline__ void store_part(const ProductShared<kRanks>& shared,
                                           const ProductCall& call, int64_t rows64, int part,
                                           const float (&low)[kRanks / 2]) {
  constexpr int kSlots = kRanks / 16 * kGroupThreads;
  const int slot = static_cast<int>(threadIdx.x % kGroupThreads);
  wait_for_previous();
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
        asm volatile(
            "red.release.gpu.global.add.u32 [%0], 1;" ::"l"(call.parts_there + rows64 + group)
            : "memory");
      }
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
  let_next_start();
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
      write_shared(shared.low(group) + slot * 16,
                   {pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]),
                    pack_bf16(sums[4], sums[5]), pack_bf16(sums[6], sums[7])});
    }
    arrive(shared.low_full(group));
    round ^= 1;
  }
}

// What this lane has of s in a left operand: rows `row` and `row` + 8, ranks r, r + 1, r + 8, r
// + 9.
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

}  // namespace wick::cuda
