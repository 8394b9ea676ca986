// How a warp's part of a product's tile reaches memory (see lora_product.cuh): by way of shared
// memory of its own, so that whole lines are written.
#pragma once

#include "wick/backend/cuda/lora_product_plan.cuh"

namespace wick::cuda {

// What the lane has of 16 rows of a tile: of each 64 columns four times eight.
struct RowsOfTile {
  uint4 of[kProductColumns / 64][4];
};

// The lane's share of a panel: rows 4i + lane / 8, eight columns from 8 (lane % 8) on.
struct PanelPlace {
  __nv_bfloat16* y;
  uint32_t memory;
  int rows;     // that there are, up to 16
  bool inside;  // the columns
  int row_stride;

  __device__ uint32_t shared_at(int i) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int r = 4 * i + lane / 8;
    return memory + r * kPanelRowBytes + (lane % 8 ^ r % 8) * 16;
  }
  __device__ bool wanted(int i) const {
    return inside && 4 * i + static_cast<int>(threadIdx.x % 32) / 8 < rows;
  }
  __device__ uint4* at(int i) const {
    const int r = 4 * i + static_cast<int>(threadIdx.x % 32) / 8;
    return reinterpret_cast<uint4*>(y + static_cast<int64_t>(r) * row_stride);
  }
};

__device__ __forceinline__ PanelPlace panel_place(const ProductCall& call, int row, int column,
                                                  int panel, uint32_t memory) {
  const int n = column + 64 * panel + 8 * static_cast<int>(threadIdx.x % 8);
  return {call.y + static_cast<int64_t>(row) * call.N + n, memory, min(call.T - row, 16),
          n < call.N, call.N};
}

__device__ __forceinline__ void load_rows(const ProductCall& call, int row, int column,
                                          RowsOfTile& rows) {
#pragma unroll
  for (int panel = 0; panel < kProductColumns / 64; ++panel) {
    const PanelPlace place = panel_place(call, row, column, panel, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows.of[panel][i] = place.wanted(i) ? *place.at(i) : uint4{0, 0, 0, 0};
    }
  }
}

// y = sums + bias (+ before, with kAdd) for 16 rows from `row` on and the tile's columns from
// `column` on.
template <bool kAdd>
__device__ __forceinline__ void store_product(const ProductCall& call, int row, int column,
                                              uint32_t memory, const RowsOfTile& before,
                                              const float (&sums)[kProductColumns / 2]) {
  constexpr int kPanels = kProductColumns / 64;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // Matrices of 8 x 8: both halves of the rows, of two neighbouring eights of columns.
  const uint32_t to = memory + lane % 16 * kPanelRowBytes;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    const PanelPlace place = panel_place(call, row, column, panel, memory);
    __syncwarp();  // the panel before has been read
    if constexpr (kAdd) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        write_shared(place.shared_at(i), before.of[panel][i]);
      }
      __syncwarp();
    }
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const uint32_t matrices = to + ((2 * pair + lane / 16) ^ (lane % 8)) * 16;
      uint32_t words[4] = {};
      if constexpr (kAdd) {
        load_matrices(matrices, words);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int eight = 8 * panel + 2 * pair + i;
        const int n = column + 8 * eight + 2 * (lane % 4);
        float2 bias = {0.0F, 0.0F};
        if (call.bias != nullptr && n < call.N) {
          bias = *reinterpret_cast<const float2*>(call.bias + n);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t& word = words[2 * i + half];
          const int at = 4 * eight + 2 * half;
          word = pack_bf16(sums[at] + bias.x + (kAdd ? low_bf16(word) : 0.0F),
                           sums[at + 1] + bias.y + (kAdd ? high_bf16(word) : 0.0F));
        }
      }
      store_matrices(matrices, words);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 words = read_shared(place.shared_at(i));
      if (place.wanted(i)) {
        *place.at(i) = words;
      }
    }
  }
}

}  // namespace wick::cuda
