// The inner loops of the kernels that normalise rows.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_NORM_INL_H_
#undef WICK_BACKEND_CPU_NORM_INL_H_
#else
#define WICK_BACKEND_CPU_NORM_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// ---- RMS norm

template <class Weight>
HWY_INLINE void rms_norm_rows(const float* x, const Weight* weight, float eps, int64_t T, int64_t C,
                              float* y, float* rstd) {
  const DF d;
  for (int64_t t = 0; t < T; ++t, x += C, y += C) {
    const float squares = sum_over(C, [&](const auto& get, VF sum) HWY_ATTR {
      const VF value = get(x);
      return hn::MulAdd(value, value, sum);
    });
    const float scale = 1.0F / __builtin_sqrtf(squares / static_cast<float>(C) + eps);
    const VF scales = hn::Set(d, scale);
    for_vectors(C, [&](int64_t, const auto& get, const auto& put)
                       HWY_ATTR { put(hn::Mul(hn::Mul(get(x), scales), get(weight)), y); });
    if (rstd != nullptr) {
      rstd[t] = scale;
    }
  }
}

template <class Weight>
HWY_INLINE void rms_norm_backward_rows(const float* x, const Weight* weight, const float* rstd,
                                       const float* dy, bool accumulate, int64_t T, int64_t C,
                                       float* dx) {
  const DF d;
  for (int64_t t = 0; t < T; ++t, x += C, dy += C, dx += C) {
    const float products = sum_over(C, [&](const auto& get, VF sum) HWY_ATTR {
      return hn::MulAdd(hn::Mul(get(weight), get(dy)), get(x), sum);
    });
    const float scale = rstd[t];
    const float mean = products / static_cast<float>(C);
    const VF scales = hn::Set(d, scale);
    const VF pull = hn::Set(d, scale * scale * scale * mean);
    for_vectors(C, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
      const VF straight = hn::Mul(hn::Mul(scales, get(weight)), get(dy));
      const VF gradient = hn::NegMulAdd(pull, get(x), straight);
      put(accumulate ? hn::Add(get(dx), gradient) : gradient, dx);
    });
  }
}

// One instance a weight type, since what is exported is no template.
#define WICK_RMS_NORM(Weight)                                                                 \
  void RmsNorm##Weight(const float* x, const Weight* weight, float eps, int64_t T, int64_t C, \
                       float* y, float* rstd) {                                               \
    rms_norm_rows(x, weight, eps, T, C, y, rstd);                                             \
  }                                                                                           \
  void RmsNormBackward##Weight(const float* x, const Weight* weight, const float* rstd,       \
                               const float* dy, bool accumulate, int64_t T, int64_t C,        \
                               float* dx) {                                                   \
    rms_norm_backward_rows(x, weight, rstd, dy, accumulate, T, C, dx);                        \
  }
WICK_RMS_NORM(float)
WICK_RMS_NORM(Bf16)
WICK_RMS_NORM(F16)
#undef WICK_RMS_NORM

// dweight[c] += sum_t dy x rstd for the columns [0, columns).
void RmsNormWeightGradient(const float* x, const float* rstd, const float* dy, int64_t T, int64_t C,
                           int64_t columns, float* dweight) {
  const DF d;
  for (int64_t t = 0; t < T; ++t, x += C, dy += C) {
    const VF scale = hn::Set(d, rstd[t]);
    for_vectors(columns, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
      put(hn::MulAdd(hn::Mul(get(dy), get(x)), scale, get(dweight)), dweight);
    });
  }
}

// ---- layer norm

// The variance is that of the differences from the mean: a mean square less a squared mean would
// lose everything where the mean is large.
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int64_t T,
               int64_t C, float* y, float* mean_rstd) {
  const DF d;
  const auto count = static_cast<float>(C);
  for (int64_t t = 0; t < T; ++t, x += C, y += C) {
    const float sum =
        sum_over(C, [&](const auto& get, VF so_far) HWY_ATTR { return hn::Add(so_far, get(x)); });
    const float mean = sum / count;
    const VF means = hn::Set(d, mean);
    const float squares = sum_over(C, [&](const auto& get, VF so_far) HWY_ATTR {
      const VF apart = hn::Sub(get(x), means);
      return hn::MulAdd(apart, apart, so_far);
    });
    const float rstd = 1.0F / __builtin_sqrtf(squares / count + eps);
    const VF scales = hn::Set(d, rstd);
    for_vectors(C, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
      const VF normed = hn::Mul(hn::Sub(get(x), means), scales);
      put(hn::MulAdd(normed, get(weight), get(bias)), y);
    });
    if (mean_rstd != nullptr) {
      mean_rstd[2 * t] = mean;
      mean_rstd[2 * t + 1] = rstd;
    }
  }
}

void LayerNormBackward(const float* x, const float* weight, const float* mean_rstd, const float* dy,
                       bool accumulate, int64_t T, int64_t C, float* dx) {
  const DF d;
  const auto count = static_cast<float>(C);
  for (int64_t t = 0; t < T; ++t, x += C, dy += C, dx += C) {
    const float rstd = mean_rstd[2 * t + 1];
    const VF means = hn::Set(d, mean_rstd[2 * t]);
    const float straight = sum_over(
        C, [&](const auto& get, VF sum) HWY_ATTR { return hn::MulAdd(get(weight), get(dy), sum); });
    const float products = sum_over(C, [&](const auto& get, VF sum) HWY_ATTR {
      return hn::MulAdd(hn::Mul(get(weight), get(dy)), hn::Sub(get(x), means), sum);
    });
    const VF scales = hn::Set(d, rstd);
    const VF shift = hn::Set(d, rstd * straight / count);
    const VF pull = hn::Set(d, rstd * rstd * rstd * products / count);
    for_vectors(C, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
      const VF direct = hn::MulSub(hn::Mul(get(weight), get(dy)), scales, shift);
      const VF gradient = hn::NegMulAdd(pull, hn::Sub(get(x), means), direct);
      put(accumulate ? hn::Add(get(dx), gradient) : gradient, dx);
    });
  }
}

// dweight[c] += sum_t dy (x - mean) rstd for the columns [0, columns).
void LayerNormWeightGradient(const float* x, const float* mean_rstd, const float* dy, int64_t T,
                             int64_t C, int64_t columns, float* dweight) {
  const DF d;
  for (int64_t t = 0; t < T; ++t, x += C, dy += C) {
    const VF mean = hn::Set(d, mean_rstd[2 * t]);
    const VF rstd = hn::Set(d, mean_rstd[2 * t + 1]);
    for_vectors(columns, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
      const VF normed = hn::Mul(hn::Sub(get(x), mean), rstd);
      put(hn::MulAdd(get(dy), normed, get(dweight)), dweight);
    });
  }
}

// ---- softmax

// y = e^(x - shift); returns the sum.
HWY_INLINE float exp_of_row(const float* x, float shift, int64_t C, float* y) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF shifts = hn::Set(d, shift);
  VF sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= C; i += lanes) {
    const VF power = exp_bounded(d, hn::Sub(hn::LoadU(d, x + i), shifts));
    hn::StoreU(power, d, y + i);
    sum = hn::Add(sum, power);
  }
  if (i < C) {
    const size_t rest = C - i;
    const VF power = exp_bounded(d, hn::Sub(load_part(d, x + i, rest), shifts));
    store_part(d, power, y + i, rest);
    sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, rest), power));
  }
  return sum_of(d, sum);
}

// Row after row in the first cache: largest, powers and their sum, quotients. NaN makes a row NaN.
void SoftmaxRows(const float* x, int64_t T, int64_t C, float* y) {
  const DF d;
  for (int64_t t = 0; t < T; ++t, x += C, y += C) {
    const VF least = hn::Set(d, -__builtin_inff());
    const VF largest = fold(
        C, least, [&](const auto& get, VF so_far) HWY_ATTR { return hn::Max(get(x), so_far); },
        [](VF a, VF b) HWY_ATTR { return hn::Max(a, b); });
    const VF scale = hn::Set(d, 1.0F / exp_of_row(x, max_of(d, largest), C, y));
    for_vectors(C, [&](int64_t, const auto& get, const auto& put)
                       HWY_ATTR { put(hn::Mul(get(y), scale), y); });
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
