// Tensor core shrink, and with it the sum over rows that reads the same tensor: ds and dB from dy.
// Bound by reading `wide` once.
#include <algorithm>

#include "wick/backend/cuda/lora_tile_parts.cuh"

namespace wick::cuda {
namespace {

// A row of a warp's sums in shared memory, so long that a warp's stores meet no bank twice.
template <int TILES>
constexpr int kSumStride = TILES <= 2 ? 8 * TILES : 8 * TILES + 16;

// Operand B of the shrink, for both halves of each strip: ranks along its columns, in the order of
// rank_of.
template <int TILES>
struct ShrinkFactor {
  uint32_t of[kStrips<TILES>][2][TILES][2];
};

// Of B: what the expand takes, transposed.
template <int TILES>
__device__ __forceinline__ void load_transposed(const TileShrink& args, int c0,
                                                ShrinkFactor<TILES>& factor) {
  ExpandFactor<TILES> rows;
  load_quads_of_b<TILES>(args.factor, c0, args.channels, args.ranks, rows);
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        factor.of[strip][matrix / 2][tile][matrix % 2] =
            transpose_8x8(rows.of[strip][matrix][tile]);
      }
    }
  }
}

template <int TILES>
__device__ __forceinline__ void load_factor(const TileShrink& args, int c0,
                                            ShrinkFactor<TILES>& factor) {
  if constexpr (TILES > 1) {
    if (args.factor.vector && !args.factor.rank_first) {
      return load_transposed<TILES>(args, c0, factor);
    }
  }
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
    const int c = c0 + 32 * strip + 8 * (lane % 4);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int r = rank_of<TILES>(tile, lane / 8) + lane / 4 % 2;
      float values[8];
      if (args.factor.rank_first && args.factor.vector) {
        const bool wanted = c < args.channels && r < args.ranks;
        const float4 first = factor_quad(args.factor, r, c, wanted);
        const float4 second = factor_quad(args.factor, r, c + 4, wanted);
        values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
        values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          values[i] = factor_at(args.factor, c + i, args.channels, r, args.ranks);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factor.of[strip][half][tile][0] = pack_bf16(values[4 * half], values[4 * half + 1]);
        factor.of[strip][half][tile][1] = pack_bf16(values[4 * half + 2], values[4 * half + 3]);
      }
    }
  }
}

// The ranks of rows t0 + g and t0 + g + 8, two a register.
template <int TILES>
__device__ __forceinline__ void load_narrow(const TileShrink& args, int64_t t0, int64_t end,
                                            uint32_t (&low)[TILES], uint32_t (&high)[TILES]) {
  const int lane = threadIdx.x & 31;
  const bool aligned = args.narrow_stride % 2 == 0 && args.ranks % 2 == 0 &&
                       reinterpret_cast<uintptr_t>(args.narrow) % 4 == 0;
  const auto pair_at = [&](int64_t t, int r) -> uint32_t {
    if (t >= end || r >= args.ranks) {
      return 0;
    }
    const __nv_bfloat16* from = args.narrow + t * args.narrow_stride + r;
    if (aligned) {
      return *reinterpret_cast<const uint32_t*>(from);
    }
    return pack_bf16(to_float(from[0]), r + 1 < args.ranks ? to_float(from[1]) : 0.0F);
  };
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    const int r = rank_of<TILES>(tile, lane % 4);
    low[tile] = pair_at(t0 + lane / 4, r);
    high[tile] = pair_at(t0 + lane / 4 + 8, r);
  }
}

// This warp's part of 16 rows' ranks, to sums[16][kSumStride].
template <int TILES>
__device__ __forceinline__ void shrink_tile(const WideTile (&wide)[kStrips<TILES>],
                                            const ShrinkFactor<TILES>& factor, float* sums) {
  const int lane = threadIdx.x & 31;
  float* row = sums + (lane / 4) * kSumStride<TILES>;
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    float own[4] = {};
#pragma unroll
    for (int strip = 0; strip < kStrips<TILES>; ++strip) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_16x8x16(wide[strip].low[2 * half], wide[strip].high[2 * half],
                         wide[strip].low[2 * half + 1], wide[strip].high[2 * half + 1],
                         factor.of[strip][half][tile][0], factor.of[strip][half][tile][1], own);
      }
    }
    float* to = row + rank_of<TILES>(tile, lane % 4);
    *reinterpret_cast<float2*>(to) = {own[0], own[1]};
    *reinterpret_cast<float2*>(to + 8 * kSumStride<TILES>) = {own[2], own[3]};
  }
}

// Adds in order the sums of the warps that share rows.
template <int TILES>
__device__ __forceinline__ void add_warps(const float* sums, int row_warps, int64_t t0,
                                          int64_t rows, float* parts) {
  constexpr int kRanks = 8 * TILES;
  const int columns = kTileWarps / row_warps;
  for (int i = threadIdx.x; i < row_warps * kTileRows * kRanks; i += kTileThreads) {
    const int row = i / kRanks;
    const int first = row / kTileRows * columns * kTileRows + row % kTileRows;
    float sum = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kTileWarps; ++warp) {
      if (warp < columns) {
        sum += sums[(warp * kTileRows + first) * kSumStride<TILES> + i % kRanks];
      }
    }
    if (t0 + row < rows) {
      parts[(t0 + row) * kRanks + i % kRanks] = sum;
    }
  }
}

// Blocks that a multiprocessor holds, as far as their registers allow.
template <int TILES, bool COLLECT>
constexpr int kResident = TILES > 4              ? 1
                          : TILES > 2 || COLLECT ? 2
                                                 : 3;

template <int TILES, bool COLLECT>
__global__ void __launch_bounds__(kTileThreads, (kResident<TILES, COLLECT>))
    shrink(const __grid_constant__ TileGroup<TileShrink> group) {
  const TileShrink& args = group.of[COLLECT ? 0 : blockIdx.z];
  const int row_warps = COLLECT ? args.row_warps : 1;
  constexpr int kWide = kStrips<TILES>;
  constexpr int kWarpSums = kTileRows * kSumStride<TILES>;
  extern __shared__ float4 shared[];
  float* sums = reinterpret_cast<float*>(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const WarpPlace place = warp_place(row_warps);
  const int block0 = static_cast<int>(blockIdx.x) * (kBlockColumns<TILES> / row_warps);
  wait_for_previous();
  let_next_start();
  if (block0 >= args.channels) {
    return;
  }
  const int c0 = block0 + place.column * 32 * kWide;
  const int c = c0 + 8 * static_cast<int>(threadIdx.x & 3);
  const int64_t begin = blockIdx.y * args.run_rows;
  const int64_t end = min(args.rows, begin + args.run_rows);
  float* parts = args.parts + blockIdx.x * args.rows * (8 * TILES);

  WideTile wide[kWide];
#pragma unroll
  for (int strip = 0; strip < kWide; ++strip) {
    load_tile(args.wide, begin + place.row, end, c + 32 * strip, args.channels, wide[strip]);
  }
  uint32_t low[TILES];
  uint32_t high[TILES];
  if constexpr (COLLECT) {
    load_narrow(args, begin + place.row, end, low, high);
  }
  ShrinkFactor<TILES> factor;
  load_factor(args, c0, factor);
  float collected[kWide][2][TILES][4] = {};
  int buffer = 0;  // of two: rows are added up while the next warps write
  for (int64_t t0 = begin; t0 < end; t0 += place.step) {
    WideTile next[kWide];
#pragma unroll
    for (int strip = 0; strip < kWide; ++strip) {
      load_tile(args.wide, t0 + place.step + place.row, end, c + 32 * strip, args.channels,
                next[strip]);
    }
    float* own = sums + buffer * kTileWarps * kWarpSums;
    shrink_tile(wide, factor, own + warp * kWarpSums);
    if constexpr (COLLECT) {
#pragma unroll
      for (int strip = 0; strip < kWide; ++strip) {
        collect_tile<TILES>(wide[strip], low, high, collected[strip]);
      }
      load_narrow(args, t0 + place.step + place.row, end, low, high);
    }
    __syncthreads();
    add_warps<TILES>(own, row_warps, t0, end, parts);
    buffer = 1 - buffer;
#pragma unroll
    for (int strip = 0; strip < kWide; ++strip) {
      wide[strip] = next[strip];
    }
  }
  if constexpr (COLLECT) {
    float* partials =
        args.partials + static_cast<int64_t>(blockIdx.y) * args.channels * (8 * TILES);
    add_row_warps<TILES>(row_warps, shared, collected);
    if (place.row == 0) {
#pragma unroll
      for (int strip = 0; strip < kWide; ++strip) {
        store_collected<TILES>(collected[strip], c0 + 32 * strip, args.channels, partials);
      }
    }
  }
}

template <int TILES, bool COLLECT>
void launch(const Context& context, std::span<const TileShrink> terms) {
  constexpr size_t kSums = size_t{2} * kTileWarps * kTileRows * kSumStride<TILES> * sizeof(float);
  constexpr size_t kShared = COLLECT ? std::max(kSums, row_warp_bytes<TILES>(4)) : kSums;
  const TileShrink& args = terms[0];
  const int most = std::ranges::max(terms, {}, &TileShrink::channels).channels;
  const auto columns = static_cast<unsigned>(tile_columns(most, args.ranks, args.row_warps));
  const auto runs = static_cast<unsigned>((args.rows + args.run_rows - 1) / args.run_rows);
  const dim3 grid(columns, runs, static_cast<unsigned>(terms.size()));
  if constexpr (kShared > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(shrink<TILES, COLLECT>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
               "lora shrink");
  }
  launch_early(context, true, shrink<TILES, COLLECT>, grid, kTileThreads, kShared, group_of(terms));
  check_launch("lora_shrink");
}

template <int TILES>
void launch_tiles(const Context& context, std::span<const TileShrink> terms) {
  if (terms[0].partials != nullptr) {
    launch<TILES, true>(context, terms);
  } else {
    launch<TILES, false>(context, terms);
  }
}

// At least, of a block that collects; and then a multiple of them.
constexpr int64_t kCollectRows = 64;

// Of a block whose warps all have channels of their own.
int tile_channels(int ranks) {
  return ranks <= 16 ? kBlockColumns<2> : kBlockColumns<4>;
}

}  // namespace

int padded_ranks(int ranks) {
  return ranks <= 8 ? 8 : ranks <= 16 ? 16 : ranks <= 32 ? 32 : 64;
}

int64_t tile_columns(int64_t channels, int ranks, int row_warps) {
  const int64_t each = tile_channels(ranks) / row_warps;
  return (channels + each - 1) / each;
}

int tile_row_warps(const Context& context, int64_t rows, int channels, int ranks) {
  const int64_t columns = tile_columns(channels, ranks, 1);
  const int64_t blocks = columns * ((rows + kCollectRows - 1) / kCollectRows);
  if (4 * blocks <= context.multiprocessors || 4 * channels <= tile_channels(ranks)) {
    return 4;
  }
  return 2 * blocks <= 2 * context.multiprocessors || 2 * channels <= tile_channels(ranks) ? 2 : 1;
}

int64_t tile_run_rows(const Context& context, int64_t rows, int64_t columns, int ranks,
                      bool collect) {
  const int64_t runs = std::max<int64_t>(1, 2 * context.multiprocessors / columns);
  const int64_t step = collect ? kCollectRows : kTileRows;
  int64_t each = (rows + runs - 1) / runs;
  if (collect) {
    // With 8 R rows the sums are a quarter of the bytes of `wide`.
    each = std::max({each, kCollectRows, std::min<int64_t>(8 * padded_ranks(ranks), rows / 16)});
  }
  return (each + step - 1) / step * step;
}

void shrink_tiles(const Context& context, std::span<const TileShrink> terms) {
  switch (padded_ranks(terms[0].ranks)) {
    case 8:
      return launch_tiles<1>(context, terms);
    case 16:
      return launch_tiles<2>(context, terms);
    case 32:
      return launch_tiles<4>(context, terms);
    default:
      return launch_tiles<8>(context, terms);
  }
}

}  // namespace wick::cuda
