// The gradient of an adapted layer's input as one product: dx[T,K] (+)= dy W + ds A, for compute
// capability 9.0.
//
// As lora_product.cuh, but W [N,K] and A [R,K] are right operands as they lie in memory: panels of
// 64 columns, each 64 rows of the sum. ds and A are one more step.
#include "wick/backend/cuda/lora_product.h"
#include "wick/backend/cuda/product_launch.cuh"
#include "wick/backend/cuda/product_store.cuh"
#include "wick/backend/cuda/rowwise.h"
#include "wick/backend/cuda/temporary.h"
#include "wick/backend/cuda/tensor_map.h"

namespace wick::cuda {
namespace {

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
};

using GradientShared = ProductShared<0>;

// One thread loads all.
template <class Shared>
__device__ __forceinline__ void load_gradient(const Shared& shared, const GradientArgs& args,
                                              int cluster, int clusters) {
  constexpr uint32_t kBoth = (1U << kProductBlocks) - 1;
  constexpr int kPanels = kProductColumns / 64 / kProductBlocks;  // of a block's share
  const ProductCall& call = args.call;
  const int rank = cluster_rank();
  RingPlace<Shared::kStages> place;
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
      expect_bytes(full, Shared::kXBytes + Shared::kWBytes);
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

// A group of four warps multiplies 64 rows. With kAdd it asks for what dx holds two steps before it
// is wanted.
template <bool kAdd>
__device__ __forceinline__ void multiply_gradient(const GradientShared& shared,
                                                  const ProductCall& call, int group, int cluster,
                                                  int clusters) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x % kGroupThreads) / 32;
  RingPlace<GradientShared::kStages> place;
  int read = -1;  // the stage that the products under way, but for the newest, read
  float sums[kProductColumns / 2];
  const auto release = [&](int stage) {
    if (lane < kProductBlocks) {
      arrive_at(shared.empty(stage), lane);
    }
  };
  const auto make_step = [&](bool add) {
    wait_for_barrier(shared.full(place.stage), place.round);
    const uint64_t left = panel_descriptor(shared.x(place.stage) + group * kGroupPanelBytes);
    const uint64_t right = rows_descriptor(shared.w(place.stage));
    begin_products();
#pragma unroll
    for (int k = 0; k < kProductDepth / 16; ++k) {
      multiply_panels<true>(left + 2 * k, right + 128 * k, add || k > 0, sums);
    }
    commit_products();
    wait_for_products<1>();
    if (read >= 0) {
      release(read);
    }
    read = place.stage;
    place.advance();
  };
  const int tiles = call.row_tiles * call.column_tiles;
  for (int index = cluster; index < tiles; index += clusters) {
    const ProductTile tile = product_tile(call, index, clusters);
    const int row = (tile.row_tile * kProductBlocks + cluster_rank()) * kProductRows +
                    group * kGroupRows + warp * 16;
    const int column = tile.column_tile * kProductColumns;
    read = -1;
#pragma unroll 1
    for (int i = 0; i < call.steps - 1; ++i) {
      make_step(i > 0);
    }
    RowsOfTile before;
    if constexpr (kAdd) {
      load_rows(call, row, column, before);
    }
    make_step(call.steps > 1);
    make_step(true);
    wait_for_products<0>();
    settle(sums);
    release(read);
    store_product<kAdd>(call, row, column, shared.rows(4 * group + warp), before, sums);
  }
}

// Grid: clusters of two blocks, at most as many as the device holds at once.
template <bool kAdd>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kProductThreads), 1)
    lora_product_dx_kernel(const __grid_constant__ GradientArgs args) {
#if WICK_GROUP_THREADS(1) == 1
  extern __shared__ __align__(1024) unsigned char unaligned[];
  const GradientShared shared{shared_address(align_panels(unaligned))};
  const int clusters = static_cast<int>(gridDim.x) / kProductBlocks;
  const int cluster = static_cast<int>(blockIdx.x) / kProductBlocks;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  constexpr int kProductRegisters = 232;
  begin_product(shared);
  wait_for_previous();
  let_next_start();
  if (group == 0) {
    leave_registers<kRegistersOfThree - kProductGroups * kProductRegisters>();
    if (threadIdx.x == 0) {
      load_gradient(shared, args, cluster, clusters);
    }
  } else {
    take_registers<kProductRegisters>();
    multiply_gradient<kAdd>(shared, args.call, group - 1, cluster, clusters);
  }
  end_product();
#endif
}

template <bool kAdd>
int clusters_at_once(const Context& context) {
  static const int count =
      clusters_at_once(context, lora_product_dx_kernel<kAdd>, GradientShared::kBytes);
  return count;
}

ProductShape shape_of(const InputGradient& gradient) {
  return {gradient.dy.rows(), gradient.weight.columns(), gradient.weight.rows(),
          static_cast<int>(gradient.ds.columns())};
}

}  // namespace

bool takes_lora_product_dx(const Context& context, const InputGradient& gradient) {
  const int64_t ranks = gradient.ds.columns();
  return ranks >= 8 && ranks <= kProductDepth && ranks % 8 == 0 &&
         gradient.ds.dtype() == DType::bf16 && aligned_to(gradient.ds.address(), 16) &&
         rows_to_copy(gradient.dy) && rows_to_copy(gradient.weight) && rows_to_copy(gradient.dx) &&
         gradient.dy.rows() > 0 && runs_groups(context, lora_product_dx_kernel<false>) &&
         clusters_at_once<false>(context) > 0 && has_tensor_maps();
}

bool lora_product_dx_gains(const Context& context, const InputGradient& gradient) {
  if (!takes_lora_product_dx(context, gradient)) {
    return false;
  }
  const ProductShape shape = shape_of(gradient);
  return product_time(shape, clusters_at_once<false>(context)) <
         dense_product_time(shape) + other_pass_time(shape);
}

void lora_product_dx(const Context& context, const InputGradient& gradient, const Tensor& a) {
  const auto [T, K, N, R] = shape_of(gradient);
  const Temporary a16(context, a.shape(), DType::bf16);
  cast(context, a, a16.tensor());
  GradientArgs args{};
  args.call = product_call({T, K, N, R});
  args.call.y = static_cast<__nv_bfloat16*>(gradient.dx.address());
  args.maps.dy = row_map({gradient.dy.address(), T, N, N}, kProductRows);
  args.maps.w = row_map({gradient.weight.address(), N, K, K}, kProductDepth);
  args.maps.ds = row_map({gradient.ds.address(), T, R, R}, kProductRows);
  args.maps.a = row_map({a16.tensor().address(), R, K, K}, kProductDepth);
  if (gradient.accumulate) {
    launch_product(context, lora_product_dx_kernel<true>, clusters_at_once<true>(context),
                   GradientShared::kBytes, args);
  } else {
    launch_product(context, lora_product_dx_kernel<false>, clusters_at_once<false>(context),
                   GradientShared::kBytes, args);
  }
}

}  // namespace wick::cuda
