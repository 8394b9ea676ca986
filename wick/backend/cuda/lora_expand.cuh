// What the kernels that expand ranks to channels do alike.
#pragma once

#include "wick/backend/cuda/lora_tile_parts.cuh"

namespace wick::cuda {

constexpr int kPanelRows = 256;  // whose ranks a block has in shared memory at a time

// A row of ranks in shared memory, so long that a warp's loads meet no bank twice.
template <int TILES>
constexpr int kLowStride = TILES <= 2 ? 8 * TILES : 8 * TILES + 16;

// Rank r of eight channels, of which a lane wants the even or the odd ones and its neighbour in g
// the others: each reads four, and they exchange two.
__device__ __forceinline__ void channels_of_a(const TileExpand& args, int c0, int r,
                                              float (&values)[4]) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const bool odd = g % 2 != 0;
  const int c = c0 + 8 * (g / 2) + 4 * (g % 2);
  const float4 quad = factor_quad(args.factor, r, c, c < args.channels && r < args.ranks);
  const float own[2] = {odd ? quad.y : quad.x, odd ? quad.w : quad.z};
  const float first = __shfl_xor_sync(0xffffffffU, odd ? quad.x : quad.y, 4);
  const float second = __shfl_xor_sync(0xffffffffU, odd ? quad.z : quad.w, 4);
  values[0] = odd ? first : own[0], values[1] = odd ? second : own[1];
  values[2] = odd ? own[0] : first, values[3] = odd ? own[1] : second;
}

template <int TILES>
__device__ __forceinline__ void load_quads_of_a(const TileExpand& args, int c0,
                                                ExpandFactor<TILES>& factor) {
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int r = rank_of<TILES>(tile, q);
      float first[4];
      float second[4];
      channels_of_a(args, c0 + 32 * strip, r, first);
      channels_of_a(args, c0 + 32 * strip, r + 1, second);
#pragma unroll
      for (int matrix = 0; matrix < 4; ++matrix) {
        factor.of[strip][matrix][tile] = pack_bf16(first[matrix], second[matrix]);
      }
    }
  }
}

template <int TILES>
__device__ __forceinline__ void load_factor(const TileExpand& args, int c0,
                                            ExpandFactor<TILES>& factor) {
  if (args.factor.vector && args.factor.rank_first) {
    return load_quads_of_a<TILES>(args, c0, factor);
  }
  if constexpr (TILES > 1) {
    if (args.factor.vector) {
      return load_quads_of_b<TILES>(args.factor, c0, args.channels, args.ranks, factor);
    }
  }
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int c = c0 + 32 * strip + 8 * (g / 2) + 2 * matrix + g % 2;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        const int r = rank_of<TILES>(tile, q);
        factor.of[strip][matrix][tile] =
            pack_bf16(factor_at(args.factor, c, args.channels, r, args.ranks),
                      factor_at(args.factor, c, args.channels, r + 1, args.ranks));
      }
    }
  }
}

// Ranks r to r + 3 of row t: the sum of the parts in order, or as stored; 0 beyond the ranks.
template <int TILES>
__device__ __forceinline__ float4 low_at(const TileExpand& args, int64_t t, int r) {
  constexpr int kRanks = 8 * TILES;
  float4 sum = {0.0F, 0.0F, 0.0F, 0.0F};
  if (args.parts == nullptr) {
    const __nv_bfloat16* from = args.low + t * args.low_stride + r;
    sum.x = r < args.ranks ? to_float(from[0]) : 0.0F;
    sum.y = r + 1 < args.ranks ? to_float(from[1]) : 0.0F;
    sum.z = r + 2 < args.ranks ? to_float(from[2]) : 0.0F;
    sum.w = r + 3 < args.ranks ? to_float(from[3]) : 0.0F;
    return sum;
  }
#pragma unroll 8
  for (int part = 0; part < args.part_count; ++part) {
    const float* from = args.parts + (part * args.rows + t) * kRanks + r;
    const float4 value = *reinterpret_cast<const float4*>(from);
    sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
  }
  return {args.scaling * sum.x, args.scaling * sum.y, args.scaling * sum.z, args.scaling * sum.w};
}

__device__ __forceinline__ void store_low(const TileExpand& args, int64_t t, int r, float4 value) {
  __nv_bfloat16* to = args.low + t * args.low_stride + r;
  const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (r + i < args.ranks) {
      to[i] = from_float<__nv_bfloat16>(values[i]);
    }
  }
}

// The ranks of rows [t0, end) into the panel, zeros after them; the first column of blocks stores.
template <int TILES>
__device__ __forceinline__ void fill_panel(const TileExpand& args, int step, int64_t t0,
                                           int64_t end, __nv_bfloat16* panel) {
  constexpr int kQuads = 2 * TILES;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kPanelRows), end - t0));
  const int padded = (rows + step - 1) / step * step;
  for (int i = threadIdx.x; i < padded * kQuads; i += kTileThreads) {
    const int row = i / kQuads;
    const int r = 4 * (i % kQuads);
    float4 value = {0.0F, 0.0F, 0.0F, 0.0F};
    if (row < rows) {
      value = low_at<TILES>(args, t0 + row, r);
      if (args.parts != nullptr && blockIdx.x == 0) {
        store_low(args, t0 + row, r, value);
      }
    }
    uint2 packed = {pack_bf16(value.x, value.y), pack_bf16(value.z, value.w)};
    *reinterpret_cast<uint2*>(panel + row * kLowStride<TILES> + r) = packed;
  }
}

// Operand A for 16 rows: ranks of rows g and g + 8, two a register, in the order of rank_of.
template <int TILES>
__device__ __forceinline__ void load_low(const __nv_bfloat16* rows, uint32_t (&low)[TILES],
                                         uint32_t (&high)[TILES]) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
  const __nv_bfloat16* first = rows + g * kLowStride<TILES>;
  const __nv_bfloat16* second = first + 8 * kLowStride<TILES>;
  if constexpr (TILES == 1) {
    low[0] = *reinterpret_cast<const uint32_t*>(first + 2 * q);
    high[0] = *reinterpret_cast<const uint32_t*>(second + 2 * q);
  } else {
#pragma unroll
    for (int pair = 0; pair < TILES / 2; ++pair) {
      const uint2 a = *reinterpret_cast<const uint2*>(first + 16 * pair + 4 * q);
      const uint2 b = *reinterpret_cast<const uint2*>(second + 16 * pair + 4 * q);
      low[2 * pair] = a.x, low[2 * pair + 1] = a.y;
      high[2 * pair] = b.x, high[2 * pair + 1] = b.y;
    }
  }
}

// Low factor^T of 16 rows and eight channels, in the order of a matrix product's result.
template <int TILES>
__device__ __forceinline__ void multiply_low(const uint32_t (&low)[TILES],
                                             const uint32_t (&high)[TILES],
                                             const uint32_t (&factor)[TILES], float (&sums)[4]) {
  if constexpr (TILES == 1) {
    multiply_16x8x8(low[0], high[0], factor[0], sums);
  } else {
#pragma unroll
    for (int tile = 0; tile < TILES; tile += 2) {
      multiply_16x8x16(low[tile], high[tile], low[tile + 1], high[tile + 1], factor[tile],
                       factor[tile + 1], sums);
    }
  }
}

__device__ __forceinline__ void store_tile(const WideTile& tile, int64_t t0, int64_t end, int c,
                                           int channels, __nv_bfloat16* y) {
  const int64_t t = t0 + (threadIdx.x & 31) / 4;
  if (c < channels && t < end) {
    store16(tile.low, y + t * channels + c);
  }
  if (c < channels && t + 8 < end) {
    store16(tile.high, y + (t + 8) * channels + c);
  }
}

template <int TILES>
void launch_expand(const Context& context, void (*kernel)(TileGroup<TileExpand>),
                   std::span<const TileExpand> terms) {
  constexpr size_t kPanel = size_t{kPanelRows} * kLowStride<TILES> * sizeof(__nv_bfloat16);
  const TileExpand& args = terms[0];
  const size_t shared = std::max(kPanel, row_warp_bytes<TILES>(args.row_warps));
  const int most = std::ranges::max(terms, {}, &TileExpand::channels).channels;
  const auto columns = static_cast<unsigned>(tile_columns(most, args.ranks, args.row_warps));
  const auto runs = static_cast<unsigned>((args.rows + args.run_rows - 1) / args.run_rows);
  const dim3 grid(columns, runs, static_cast<unsigned>(terms.size()));
  if (args.parts != nullptr) {
    launch_early(context, true, kernel, grid, kTileThreads, shared, group_of(terms));
  } else {
    kernel<<<grid, kTileThreads, shared, context.stream>>>(group_of(terms));
  }
  check_launch("lora_expand");
}

// For terms with products.
void expand_onto_products(const Context& context, std::span<const TileExpand> terms);

}  // namespace wick::cuda
