// Kernels that normalise rows: ranges of rows are tasks.
#include "wick/backend/cpu/norm.h"

#include "wick/backend/cpu/matmul.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/norm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "wick/backend/cpu/norm_inl.h"

#if HWY_ONCE

#include <optional>

namespace wick::cpu {

HWY_EXPORT(RmsNormfloat);
HWY_EXPORT(RmsNormBf16);
HWY_EXPORT(RmsNormF16);
HWY_EXPORT(RmsNormBackwardfloat);
HWY_EXPORT(RmsNormBackwardBf16);
HWY_EXPORT(RmsNormBackwardF16);
HWY_EXPORT(RmsNormWeightGradient);
HWY_EXPORT(LayerNorm);
HWY_EXPORT(LayerNormBackward);
HWY_EXPORT(LayerNormWeightGradient);
HWY_EXPORT(SoftmaxRows);

namespace {

constexpr int64_t kGradientColumns = 256;  // of a task that sums a weight's gradient over the rows

// Overloads by the stored type, for with_elements.
void norm_rows(const float* x, const float* weight, float eps, int64_t T, int64_t C, float* y,
               float* rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormfloat)(x, weight, eps, T, C, y, rstd);
}
void norm_rows(const float* x, const Bf16* weight, float eps, int64_t T, int64_t C, float* y,
               float* rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormBf16)(x, weight, eps, T, C, y, rstd);
}
void norm_rows(const float* x, const F16* weight, float eps, int64_t T, int64_t C, float* y,
               float* rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormF16)(x, weight, eps, T, C, y, rstd);
}

void norm_rows_backward(const float* x, const float* weight, const float* rstd, const float* dy,
                        bool accumulate, int64_t T, int64_t C, float* dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardfloat)(x, weight, rstd, dy, accumulate, T, C, dx);
}
void norm_rows_backward(const float* x, const Bf16* weight, const float* rstd, const float* dy,
                        bool accumulate, int64_t T, int64_t C, float* dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardBf16)(x, weight, rstd, dy, accumulate, T, C, dx);
}
void norm_rows_backward(const float* x, const F16* weight, const float* rstd, const float* dy,
                        bool accumulate, int64_t T, int64_t C, float* dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardF16)(x, weight, rstd, dy, accumulate, T, C, dx);
}

// The values of a weight or bias as f32: its own, or a widened copy. An empty one is zeros.
class WideVector {
 public:
  WideVector(const Context& context, const Tensor& values, int64_t count) {
    if (values && values.dtype() == DType::f32) {
      data_ = values.data<float>();
      return;
    }
    copy_.emplace(context.scratch, count);
    data_ = copy_->data();
    if (!values) {
      std::fill_n(copy_->data(), count, 0.0F);
      return;
    }
    with_elements(values, [&](const auto* from) {
      std::transform(from, from + count, copy_->data(), [](auto value) { return to_f32(value); });
    });
  }
  const float* data() const { return data_; }

 private:
  std::optional<Scratch> copy_;
  const float* data_ = nullptr;
};

}  // namespace

void rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float eps,
              const Tensor& y, const Tensor& rstd) {
  const int64_t C = x.columns();
  for_ranges(
      context, x.rows(), rows_of(task_elements(x.elements()), C), [&](int64_t begin, int64_t end) {
        with_elements(weight, [&](const auto* weights) {
          norm_rows(x.data<float>() + begin * C, weights, eps, end - begin, C,
                    y.data<float>() + begin * C, rstd ? rstd.data<float>() + begin : nullptr);
        });
      });
}

void rms_norm_backward(const Context& context, const RmsNormResults& forward, bool accumulate,
                       const Tensor& dx, const Tensor& dweight) {
  const int64_t T = forward.x.rows();
  const int64_t C = forward.x.columns();
  const float* x = forward.x.data<float>();
  const float* dy = forward.dy.data<float>();
  const float* rstd = forward.rstd.data<float>();
  if (dweight) {
    for_ranges(context, C, kGradientColumns, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(RmsNormWeightGradient)
      (x + begin, rstd, dy + begin, T, C, end - begin, dweight.data<float>() + begin);
    });
  }
  for_ranges(context, T, rows_of(task_elements(T * C), C), [&](int64_t begin, int64_t end) {
    with_elements(forward.weight, [&](const auto* weights) {
      norm_rows_backward(x + begin * C, weights, rstd + begin, dy + begin * C, accumulate,
                         end - begin, C, dx.data<float>() + begin * C);
    });
  });
}

void layer_norm(const Context& context, const LayerNormInputs& in, float eps, const Tensor& y,
                const Tensor& mean_rstd) {
  const int64_t C = in.x.columns();
  const WideVector weight(context, in.weight, C);
  const WideVector bias(context, in.bias, C);
  for_ranges(context, in.x.rows(), rows_of(task_elements(y.elements()), C),
             [&](int64_t begin, int64_t end) {
               HWY_DYNAMIC_DISPATCH(LayerNorm)
               (in.x.data<float>() + begin * C, weight.data(), bias.data(), eps, end - begin, C,
                y.data<float>() + begin * C,
                mean_rstd ? mean_rstd.data<float>() + 2 * begin : nullptr);
             });
}

void layer_norm_backward(const Context& context, const LayerNormResults& forward, bool accumulate,
                         const LayerNormGradients& gradients) {
  const int64_t T = forward.x.rows();
  const int64_t C = forward.x.columns();
  const float* x = forward.x.data<float>();
  const float* dy = forward.dy.data<float>();
  const float* mean_rstd = forward.mean_rstd.data<float>();
  if (gradients.dweight) {
    for_ranges(context, C, kGradientColumns, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(LayerNormWeightGradient)
      (x + begin, mean_rstd, dy + begin, T, C, end - begin,
       gradients.dweight.data<float>() + begin);
    });
  }
  if (gradients.dbias) {
    add_column_sums(context, forward.dy, gradients.dbias);
  }
  const WideVector weight(context, forward.weight, C);
  for_ranges(context, T, rows_of(task_elements(T * C), C), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(LayerNormBackward)
    (x + begin * C, weight.data(), mean_rstd + 2 * begin, dy + begin * C, accumulate, end - begin,
     C, gradients.dx.data<float>() + begin * C);
  });
}

void softmax(const Context& context, const Tensor& x, const Tensor& y) {
  const int64_t C = x.columns();
  constexpr int64_t kWork = 4;  // an exponential costs as much as several additions
  for_ranges(context, x.rows(), rows_of(task_elements(kWork * x.elements()) / kWork, C),
             [&](int64_t begin, int64_t end) {
               HWY_DYNAMIC_DISPATCH(SoftmaxRows)
               (x.data<float>() + begin * C, end - begin, C, y.data<float>() + begin * C);
             });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
