// Tensor core expand, and with it the sum over rows that uses the same ranks: dx and dA from ds.
// Bound by reading and writing y (and by reading x) once.
#include "wick/backend/cuda/lora_expand.cuh"

namespace wick::cuda {
namespace {

// y of 16 rows and 32 channels += scaling low factor^T.
template <int TILES>
__device__ __forceinline__ void expand_tile(const uint32_t (&low)[TILES],
                                            const uint32_t (&high)[TILES],
                                            const uint32_t (&factor)[4][TILES], float scaling,
                                            WideTile& y) {
#pragma unroll
  for (int matrix = 0; matrix < 4; ++matrix) {
    float sums[4] = {};
    multiply_low<TILES>(low, high, factor[matrix], sums);
    y.low[matrix] = pack_bf16(fmaf(scaling, sums[0], low_bf16(y.low[matrix])),
                              fmaf(scaling, sums[1], high_bf16(y.low[matrix])));
    y.high[matrix] = pack_bf16(fmaf(scaling, sums[2], low_bf16(y.high[matrix])),
                               fmaf(scaling, sums[3], high_bf16(y.high[matrix])));
  }
}

// What is read ahead: x where there is something to collect, else y.
template <int TILES, bool COLLECT>
__device__ __forceinline__ void read_ahead(const TileExpand& args, int64_t t0, int64_t end, int c,
                                           WideTile (&tiles)[kStrips<TILES>]) {
  const int64_t wanted = COLLECT || args.accumulate ? end : 0;
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
    load_tile(COLLECT ? args.wide : args.y, t0, wanted, c + 32 * strip, args.channels,
              tiles[strip]);
  }
}

template <int TILES>
__device__ __forceinline__ void read_y(const TileExpand& args, int64_t t0, int64_t end, int c,
                                       WideTile (&y)[kStrips<TILES>]) {
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
    load_tile(args.y, t0, args.accumulate ? end : 0, c + 32 * strip, args.channels, y[strip]);
  }
}

template <int TILES, bool COLLECT, bool EXPAND>
__global__ void __launch_bounds__(kTileThreads, TILES <= 4 ? 2 : 1)
    expand(const __grid_constant__ TileGroup<TileExpand> group) {
  const TileExpand& args = group.of[COLLECT ? 0 : blockIdx.z];
  const int row_warps = COLLECT ? args.row_warps : 1;
  constexpr int kWide = kStrips<TILES>;
  extern __shared__ float4 shared[];
  __nv_bfloat16* panel = reinterpret_cast<__nv_bfloat16*>(shared);
  const WarpPlace place = warp_place(row_warps);
  const int block0 = static_cast<int>(blockIdx.x) * (kBlockColumns<TILES> / row_warps);
  if (block0 >= args.channels) {
    return;
  }
  const int c0 = block0 + place.column * 32 * kWide;
  const int c = c0 + 8 * static_cast<int>(threadIdx.x & 3);
  const int64_t begin = blockIdx.y * args.run_rows;
  const int64_t end = min(args.rows, begin + args.run_rows);

  WideTile wide[kWide];
  read_ahead<TILES, COLLECT>(args, begin + place.row, end, c, wide);
  WideTile y[kWide];
  if constexpr (COLLECT && EXPAND) {
    read_y<TILES>(args, begin + place.row, end, c, y);
  }
  ExpandFactor<TILES> factor;
  if constexpr (EXPAND) {
    load_factor(args, c0, factor);
  }
  wait_for_previous();  // and its parts
  let_next_start();
  float collected[kWide][2][TILES][4] = {};
  for (int64_t p0 = begin; p0 < end; p0 += kPanelRows) {
    __syncthreads();  // the panel before has been read
    fill_panel<TILES>(args, kTileRows * row_warps, p0, end, panel);
    __syncthreads();
    const int64_t panel_end = min(end, p0 + kPanelRows);
    for (int64_t t0 = p0 + place.row; t0 < panel_end + place.row; t0 += place.step) {
      WideTile next[kWide];
      read_ahead<TILES, COLLECT>(args, t0 + place.step, end, c, next);
      uint32_t low[TILES];
      uint32_t high[TILES];
      load_low<TILES>(panel + (t0 - p0) * kLowStride<TILES>, low, high);
#pragma unroll
      for (int strip = 0; strip < kWide; ++strip) {
        if constexpr (COLLECT) {
          collect_tile<TILES>(wide[strip], low, high, collected[strip]);
        }
        if constexpr (EXPAND) {
          if constexpr (!COLLECT) {
            y[strip] = wide[strip];
          }
          expand_tile<TILES>(low, high, factor.of[strip], args.y_scaling, y[strip]);
          store_tile(y[strip], t0, end, c + 32 * strip, args.channels, args.y);
        }
        wide[strip] = next[strip];
      }
      if constexpr (COLLECT && EXPAND) {
        read_y<TILES>(args, t0 + place.step, end, c, y);
      }
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

template <int TILES>
__global__ void __launch_bounds__(kTileThreads)
    add_in_order(const __grid_constant__ TileExpand args) {
  constexpr int kQuads = 2 * TILES;
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i < args.rows * kQuads) {
    const int r = 4 * static_cast<int>(i % kQuads);
    store_low(args, i / kQuads, r, low_at<TILES>(args, i / kQuads, r));
  }
}

template <int TILES>
void launch_tiles(const Context& context, std::span<const TileExpand> terms) {
  if (terms[0].wide == nullptr) {
    launch_expand<TILES>(context, expand<TILES, false, true>, terms);
  } else if (terms[0].y == nullptr) {
    launch_expand<TILES>(context, expand<TILES, true, false>, terms);
  } else {
    launch_expand<TILES>(context, expand<TILES, true, true>, terms);
  }
}

template <int TILES>
void launch_add(const Context& context, const TileExpand& args) {
  const int64_t threads = args.rows * 2 * TILES;
  const auto grid = static_cast<unsigned>((threads + kTileThreads - 1) / kTileThreads);
  launch_early(context, true, add_in_order<TILES>, grid, kTileThreads, 0, args);
  check_launch("lora_add_parts");
}

}  // namespace

void expand_tiles(const Context& context, std::span<const TileExpand> terms) {
  if (terms[0].product != nullptr) {
    return expand_onto_products(context, terms);
  }
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

void add_parts(const Context& context, const TileExpand& args) {
  switch (padded_ranks(args.ranks)) {
    case 8:
      return launch_add<1>(context, args);
    case 16:
      return launch_add<2>(context, args);
    case 32:
      return launch_add<4>(context, args);
    default:
      return launch_add<8>(context, args);
  }
}

}  // namespace wick::cuda
