// What the two tensor core kernels of LoRA do alike: loads into operands, and sums over rows.
#pragma once

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/elements.cuh"
#include "wick/backend/cuda/lora_tiles.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kTileRows = 16;

// TILES: eights of ranks. A warp has 32 STRIPS channels; more ranks leave registers for fewer.
template <int TILES>
constexpr int kStrips = TILES <= 2 ? 2 : 1;
template <int TILES>
constexpr int kBlockColumns = 32 * kStrips<TILES>* kTileWarps;

// 16 rows of 32 channels: eight channels of row g, and of row g + 8.
struct WideTile {
  uint32_t low[4];
  uint32_t high[4];
};

__device__ __forceinline__ void load16(const __nv_bfloat16* from, bool wanted, uint32_t (&to)[4]) {
  uint4 words = {0U, 0U, 0U, 0U};
  if (wanted) {
    words = *reinterpret_cast<const uint4*>(from);
  }
  to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

__device__ __forceinline__ void store16(const uint32_t (&from)[4], __nv_bfloat16* to) {
  *reinterpret_cast<uint4*>(to) = {from[0], from[1], from[2], from[3]};
}

// Rows t0 + g and t0 + g + 8 of `wide` from channel c on; zeros from row `end` and `channels` on.
__device__ __forceinline__ void load_tile(const __nv_bfloat16* wide, int64_t t0, int64_t end, int c,
                                          int channels, WideTile& tile) {
  const int64_t t = t0 + (threadIdx.x & 31) / 4;
  load16(wide + t * channels + c, t < end && c < channels, tile.low);
  load16(wide + (t + 8) * channels + c, t + 8 < end && c < channels, tile.high);
}

// Rank 2e and 2e + 1 of lane q in eight `tile`: see lora_tiles.cuh. A single eight is in order.
template <int TILES>
__device__ __forceinline__ int rank_of(int tile, int q) {
  return TILES == 1 ? 2 * q : 16 * (tile / 2) + 4 * q + 2 * (tile % 2);
}

// sums[pair][tile] += wide^T low over 16 rows, for matrices 2 pair and 2 pair + 1 of the strip's
// four.
template <int TILES>
__device__ __forceinline__ void collect_tile(const WideTile& wide, const uint32_t (&low)[TILES],
                                             const uint32_t (&high)[TILES],
                                             float (&sums)[2][TILES][4]) {
  uint32_t b[TILES][2];
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    b[tile][0] = transpose_8x8(low[tile]);
    b[tile][1] = transpose_8x8(high[tile]);
  }
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    const uint32_t a0 = transpose_8x8(wide.low[2 * pair]);
    const uint32_t a1 = transpose_8x8(wide.low[2 * pair + 1]);
    const uint32_t a2 = transpose_8x8(wide.high[2 * pair]);
    const uint32_t a3 = transpose_8x8(wide.high[2 * pair + 1]);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      multiply_16x8x16(a0, a1, a2, a3, b[tile][0], b[tile][1], sums[pair][tile]);
    }
  }
}

// The sums of collect_tile for the strip from channel c0 on, to partials[channel, 8 TILES].
template <int TILES>
__device__ __forceinline__ void store_collected(const float (&sums)[2][TILES][4], int c0,
                                                int channels, float* partials) {
  const int lane = threadIdx.x & 31;
  const int g = lane / 4;
  const int q = lane % 4;
#pragma unroll
  for (int matrix = 0; matrix < 4; ++matrix) {
    const int c = c0 + 8 * (g / 2) + 2 * matrix + g % 2;
    const int half = 2 * (matrix % 2);
    if (c < channels) {
      float* to = partials + static_cast<int64_t>(c) * 8 * TILES;
      if constexpr (TILES == 1) {
        const float(&own)[4] = sums[matrix / 2][0];
        *reinterpret_cast<float2*>(to + 2 * q) = {own[half], own[half + 1]};
      } else {
#pragma unroll
        for (int pair = 0; pair < TILES / 2; ++pair) {
          const float(&first)[4] = sums[matrix / 2][2 * pair];
          const float(&second)[4] = sums[matrix / 2][2 * pair + 1];
          *reinterpret_cast<float4*>(to + 16 * pair + 4 * q) = {first[half], first[half + 1],
                                                                second[half], second[half + 1]};
        }
      }
    }
  }
}

// A factor's value, 0 beyond its ranks and channels.
__device__ __forceinline__ float factor_at(const TileFactor& factor, int c, int channels, int r,
                                           int ranks) {
  if (c >= channels || r >= ranks) {
    return 0.0F;
  }
  return factor.rank_first ? factor.values[r * factor.stride + c]
                           : factor.values[c * factor.stride + r];
}

// Of a block's warps `row_warps` share the channels, each with 16 rows of every step.
struct WarpPlace {
  int column;  // which of the block's runs of 32 STRIPS channels
  int row;     // of a step, its first
  int step;    // rows
};

__device__ __forceinline__ WarpPlace warp_place(int row_warps) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = kTileWarps / row_warps;
  return {warp % columns, warp / columns * kTileRows, row_warps * kTileRows};
}

// Shared memory that add_row_warps wants.
template <int TILES>
constexpr size_t row_warp_bytes(int row_warps) {
  const int columns = kTileWarps / row_warps;
  return sizeof(float) * 32 * (kStrips<TILES> * 8 * TILES) * (kTileWarps - columns);
}
static_assert(row_warp_bytes<8>(4) <= 48 * 1024);

// Adds, in order, what the warps of the same channels have collected, in the first of them.
template <int TILES>
__device__ __forceinline__ void add_row_warps(int row_warps, float4* shared,
                                              float (&collected)[kStrips<TILES>][2][TILES][4]) {
  if (row_warps == 1) {
    return;
  }
  constexpr int kQuads = kStrips<TILES> * 2 * TILES;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = kTileWarps / row_warps;
  float(&quads)[kQuads][4] = reinterpret_cast<float(&)[kQuads][4]>(collected);
  __syncthreads();  // the memory's last use
  if (warp >= columns) {
    float4* own = shared + (warp - columns) * kQuads * 32 + lane;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      own[32 * i] = {quads[i][0], quads[i][1], quads[i][2], quads[i][3]};
    }
  }
  __syncthreads();
  if (warp < columns) {
    for (int from = warp; from < kTileWarps - columns; from += columns) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const float4 quad = shared[(from * kQuads + i) * 32 + lane];
        quads[i][0] += quad.x, quads[i][1] += quad.y, quads[i][2] += quad.z, quads[i][3] += quad.w;
      }
    }
  }
}

// Channels (or, of B, ranks) `at` to at + 3 of row `row` of a factor with `vector`; zeros where not
// wanted.
__device__ __forceinline__ float4 factor_quad(const TileFactor& factor, int row, int at,
                                              bool wanted) {
  float4 quad = {0.0F, 0.0F, 0.0F, 0.0F};
  if (wanted) {
    quad = *reinterpret_cast<const float4*>(factor.values + row * factor.stride + at);
  }
  return quad;
}

// Operand B of the expand for the four matrices of channels of each strip.
template <int TILES>
struct ExpandFactor {
  uint32_t of[kStrips<TILES>][4][TILES];
};

// Of B with `vector`: the four ranks of a pair of eights, 16 bytes.
template <int TILES>
__device__ __forceinline__ void load_quads_of_b(const TileFactor& from, int c0, int channels,
                                                int ranks, ExpandFactor<TILES>& factor) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int c = c0 + 32 * strip + 8 * (g / 2) + 2 * matrix + g % 2;
#pragma unroll
      for (int tile = 0; tile < TILES; tile += 2) {
        const int r = rank_of<TILES>(tile, q);
        const float4 quad = factor_quad(from, c, r, c < channels && r < ranks);
        factor.of[strip][matrix][tile] = pack_bf16(quad.x, quad.y);
        factor.of[strip][matrix][tile + 1] = pack_bf16(quad.z, quad.w);
      }
    }
  }
}

}  // namespace wick::cuda
