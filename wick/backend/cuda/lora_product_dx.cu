// Which gradients of layers become one product.
#include "wick/backend/cuda/lora_product.h"
#include "wick/backend/cuda/lora_product_dx.cuh"
#include "wick/backend/cuda/product_launch.cuh"
#include "wick/backend/cuda/rowwise.h"
#include "wick/backend/cuda/temporary.h"
#include "wick/backend/cuda/tensor_map.h"

namespace wick::cuda {
namespace {

int clusters_at_once(const Context& context) {
  static const int count =
      clusters_at_once(context, lora_product_dx_kernel, GradientShared::kBytes);
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
         gradient.dy.rows() > 0 && runs_groups(context, lora_product_dx_kernel) &&
         has_tensor_maps();
}

bool lora_product_dx_gains(const Context& context, const InputGradient& gradient) {
  if (!takes_lora_product_dx(context, gradient)) {
    return false;
  }
  const ProductShape shape = shape_of(gradient);
  return product_time(shape, clusters_at_once(context)) <
         dense_product_time(shape) + 2 * expand_time(shape);  // dx is read and written
}

void lora_product_dx(const Context& context, const InputGradient& gradient, const Tensor& a) {
  const auto [T, K, N, R] = shape_of(gradient);
  const Temporary a16(context, a.shape(), DType::bf16);
  cast(context, a, a16.tensor());
  GradientArgs args{};
  args.call = product_call({T, K, N, R});
  args.call.y = static_cast<__nv_bfloat16*>(gradient.dx.address());
  args.accumulate = gradient.accumulate;
  args.maps.dy = row_map({gradient.dy.address(), T, N, N}, kProductRows);
  args.maps.w = row_map({gradient.weight.address(), N, K, K}, kProductDepth);
  args.maps.ds = row_map({gradient.ds.address(), T, R, R}, kProductRows);
  args.maps.a = row_map({a16.tensor().address(), R, K, K}, kProductDepth);
  launch_product(context, lora_product_dx_kernel, clusters_at_once(context), GradientShared::kBytes,
                 args);
}

}  // namespace wick::cuda
