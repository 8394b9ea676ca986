// Adds the low-rank change to a product that is still f32, so that a change smaller than what bf16
// resolves in y is not lost. Bound by reading the product and writing y.
#include "wick/backend/cuda/lora_expand.cuh"

namespace wick::cuda {
namespace {

// 16 rows of 32 channels in f32: eight channels of row g, and of row g + 8.
struct ProductTile {
  float low[8];
  float high[8];
};

// Eight of them from `from` on; zeros where they are not wanted.
__device__ __forceinline__ void load_eight(const float* from, bool wanted, float (&to)[8]) {
  float4 first = {0.0F, 0.0F, 0.0F, 0.0F};
  float4 second = first;
  if (wanted) {
    first = reinterpret_cast<const float4*>(from)[0];
    second = reinterpret_cast<const float4*>(from)[1];
  }
  to[0] = first.x, to[1] = first.y, to[2] = first.z, to[3] = first.w;
  to[4] = second.x, to[5] = second.y, to[6] = second.z, to[7] = second.w;
}

__device__ __forceinline__ void load_tile(const float* product, int64_t t0, int64_t end, int c,
                                          int channels, ProductTile& tile) {
  const int64_t t = t0 + (threadIdx.x & 31) / 4;
  load_eight(product + t * channels + c, t < end && c < channels, tile.low);
  load_eight(product + (t + 8) * channels + c, t + 8 < end && c < channels, tile.high);
}

// y = product + bias + scaling low factor^T.
template <int TILES>
__device__ __forceinline__ void expand_onto(const uint32_t (&low)[TILES],
                                            const uint32_t (&high)[TILES],
                                            const uint32_t (&factor)[4][TILES], float scaling,
                                            const ProductTile& product, const uint32_t (&bias)[4],
                                            WideTile& y) {
#pragma unroll
  for (int matrix = 0; matrix < 4; ++matrix) {
    float sums[4] = {};
    multiply_low<TILES>(low, high, factor[matrix], sums);
    const float first = low_bf16(bias[matrix]);
    const float second = high_bf16(bias[matrix]);
    y.low[matrix] = pack_bf16(fmaf(scaling, sums[0], product.low[2 * matrix] + first),
                              fmaf(scaling, sums[1], product.low[2 * matrix + 1] + second));
    y.high[matrix] = pack_bf16(fmaf(scaling, sums[2], product.high[2 * matrix] + first),
                               fmaf(scaling, sums[3], product.high[2 * matrix + 1] + second));
  }
}

template <int TILES>
__device__ __forceinline__ void read_product(const TileExpand& args, int64_t t0, int64_t end, int c,
                                             ProductTile (&tiles)[kStrips<TILES>]) {
#pragma unroll
  for (int strip = 0; strip < kStrips<TILES>; ++strip) {
    load_tile(args.product, t0, end, c + 32 * strip, args.channels, tiles[strip]);
  }
}

// Adds the change to a product in f32: see TileExpand.
template <int TILES>
__global__ void __launch_bounds__(kTileThreads, TILES <= 4 ? 2 : 1)
    expand_onto_product(const __grid_constant__ TileGroup<TileExpand> group) {
  const TileExpand& args = group.of[blockIdx.z];
  constexpr int kWide = kStrips<TILES>;
  extern __shared__ float4 shared[];
  __nv_bfloat16* panel = reinterpret_cast<__nv_bfloat16*>(shared);
  const WarpPlace place = warp_place(1);
  const int block0 = static_cast<int>(blockIdx.x) * kBlockColumns<TILES>;
  if (block0 >= args.channels) {
    return;
  }
  const int c0 = block0 + place.column * 32 * kWide;
  const int c = c0 + 8 * static_cast<int>(threadIdx.x & 3);
  const int64_t begin = blockIdx.y * args.run_rows;
  const int64_t end = min(args.rows, begin + args.run_rows);

  ProductTile product[kWide];
  read_product<TILES>(args, begin + place.row, end, c, product);
  uint32_t bias[kWide][4];
#pragma unroll
  for (int strip = 0; strip < kWide; ++strip) {
    const int channel = c + 32 * strip;
    load16(args.bias + channel, args.bias != nullptr && channel < args.channels, bias[strip]);
  }
  ExpandFactor<TILES> factor;
  load_factor(args, c0, factor);
  wait_for_previous();  // and its parts
  let_next_start();
  for (int64_t p0 = begin; p0 < end; p0 += kPanelRows) {
    __syncthreads();  // the panel before has been read
    fill_panel<TILES>(args, kTileRows, p0, end, panel);
    __syncthreads();
    const int64_t panel_end = min(end, p0 + kPanelRows);
    for (int64_t t0 = p0 + place.row; t0 < panel_end + place.row; t0 += place.step) {
      ProductTile next[kWide];
      read_product<TILES>(args, t0 + place.step, end, c, next);
      uint32_t low[TILES];
      uint32_t high[TILES];
      load_low<TILES>(panel + (t0 - p0) * kLowStride<TILES>, low, high);
#pragma unroll
      for (int strip = 0; strip < kWide; ++strip) {
        WideTile y;
        expand_onto<TILES>(low, high, factor.of[strip], args.y_scaling, product[strip], bias[strip],
                           y);
        store_tile(y, t0, end, c + 32 * strip, args.channels, args.y);
        product[strip] = next[strip];
      }
    }
  }
}

}  // namespace

void expand_onto_products(const Context& context, std::span<const TileExpand> terms) {
  switch (padded_ranks(terms[0].ranks)) {
    case 8:
      return launch_expand<1>(context, expand_onto_product<1>, terms);
    case 16:
      return launch_expand<2>(context, expand_onto_product<2>, terms);
    case 32:
      return launch_expand<4>(context, expand_onto_product<4>, terms);
    default:
      return launch_expand<8>(context, expand_onto_product<8>, terms);
  }
}

}  // namespace wick::cuda
