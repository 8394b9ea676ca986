// Cross-entropy of some rows a task. One pass finds the largest logit and the sum, with the sum
// rescaled whenever the largest grows; a second writes the gradient. Where a row is one block, the
// first leaves the exponentials in place of the logits, and the second only scales them.
#include "wick/backend/cpu/loss.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/loss.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_LOSS_SHARED_
#define WICK_BACKEND_CPU_LOSS_SHARED_
namespace wick::cpu {

struct Softmax {
  float largest, sum;  // sum of e^(x - largest)
};

// Logits that stay in the first cache: their largest is found first, then their sum.
constexpr int64_t kSoftmaxBlock = 2048;

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// With kKeep each logit becomes e^(x - largest), of a row of one block.
template <bool kKeep>
HWY_INLINE Softmax softmax_of_row(float* row, int64_t V) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  float largest = -3.0e38F;
  double sum = 0;
  for (int64_t begin = 0; begin < V; begin += kSoftmaxBlock) {
    const int64_t count = HWY_MIN(kSoftmaxBlock, V - begin);
    float* x = row + begin;
    VF most = hn::Set(d, largest);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      most = hn::Max(hn::LoadU(d, x + i), most);
    }
    float top = max_of(d, most);
    for (; i < count; ++i) {
      top = x[i] > top ? x[i] : top;
    }
    if (top > largest) {
      const VF drop = exp_bounded(d, hn::Set(d, largest - top));
      sum *= hn::GetLane(drop);
      largest = top;
    }
    const VF shift = hn::Set(d, largest);
    const auto power_at = [&](int64_t at) HWY_ATTR {
      const VF power = exp_bounded(d, hn::Sub(hn::LoadU(d, x + at), shift));
      if constexpr (kKeep) {
        hn::StoreU(power, d, x + at);
      }
      return power;
    };
    VF sum0 = hn::Zero(d);
    VF sum1 = hn::Zero(d);
    for (i = 0; i + 2 * lanes <= count; i += 2 * lanes) {
      sum0 = hn::Add(sum0, power_at(i));
      sum1 = hn::Add(sum1, power_at(i + lanes));
    }
    for (; i + lanes <= count; i += lanes) {
      sum0 = hn::Add(sum0, power_at(i));
    }
    sum += sum_of(d, hn::Add(sum0, sum1));
    if (i < count) {
      const size_t rest = count - i;
      const VF last = exp_bounded(d, hn::Sub(load_part(d, x + i, rest), shift));
      if constexpr (kKeep) {
        store_part(d, last, x + i, rest);
      }
      sum += sum_of(d, hn::IfThenElseZero(hn::FirstN(d, rest), last));
    }
  }
  return {largest, static_cast<float>(sum)};
}

void SoftmaxOfRow(float* row, int64_t V, Softmax* result) {
  *result = softmax_of_row<false>(row, V);
}

void PowersOfRow(float* row, int64_t V, Softmax* result) {
  *result = softmax_of_row<true>(row, V);
}

void SoftmaxGradient(float scale, float largest, int64_t V, float* row) {
  const DF d;
  const VF shift = hn::Set(d, largest);
  const VF scales = hn::Set(d, scale);
  for_vectors(V, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
    put(hn::Mul(scales, exp_bounded(d, hn::Sub(get(row), shift))), row);
  });
}

void ScaleRow(float scale, int64_t V, float* row) {
  const VF scales = hn::Set(DF(), scale);
  for_vectors(V, [&](int64_t, const auto& get, const auto& put)
                     HWY_ATTR { put(hn::Mul(scales, get(row)), row); });
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cmath>

namespace wick::cpu {

HWY_EXPORT(SoftmaxOfRow);
HWY_EXPORT(PowersOfRow);
HWY_EXPORT(SoftmaxGradient);
HWY_EXPORT(ScaleRow);

namespace {

// The loss of a row, whose logits become their gradient if `scale` is not null.
float loss_of_row(float* row, int64_t V, int32_t target, const float* scale) {
  const float logit = row[target];
  Softmax softmax{};
  if (scale != nullptr && V <= kSoftmaxBlock) {
    HWY_DYNAMIC_DISPATCH(PowersOfRow)(row, V, &softmax);
    HWY_DYNAMIC_DISPATCH(ScaleRow)(*scale / softmax.sum, V, row);
  } else {
    HWY_DYNAMIC_DISPATCH(SoftmaxOfRow)(row, V, &softmax);
    if (scale != nullptr) {
      HWY_DYNAMIC_DISPATCH(SoftmaxGradient)(*scale / softmax.sum, softmax.largest, V, row);
    }
  }
  if (scale != nullptr) {
    row[target] -= *scale;
  }
  return std::log(softmax.sum) + softmax.largest - logit;
}

}  // namespace

void cross_entropy(const Context& context, const Tensor& targets, const CrossEntropyArgs& args,
                   const Tensor& logits, const Tensor& losses) {
  const int64_t V = logits.columns();
  constexpr int64_t kTaskLogits = 4096;  // some 2 us
  const float* scale = args.gradient_scale ? args.gradient_scale.data<float>() : nullptr;
  const int32_t* target = targets.data<int32_t>();
  float* rows = logits.data<float>();
  float* loss = losses.data<float>();
  for_ranges(context, logits.rows(), rows_of(kTaskLogits, V), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + i * V;
      if (target[i] >= 0) {
        loss[i] = loss_of_row(row, V, target[i], scale);
        continue;
      }
      loss[i] = 0;
      if (scale != nullptr) {
        std::fill_n(row, V, 0.0F);
      }
    }
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
