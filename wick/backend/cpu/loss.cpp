// Cross-entropy: a row is a task. One pass finds the largest logit and the sum, with the sum
// rescaled whenever the largest grows; a second writes the gradient.
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

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

void SoftmaxOfRow(const float* row, int64_t V, Softmax* result) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Blocks that stay in the first cache: their largest first, then their sum.
  constexpr int64_t kBlock = 2048;
  float largest = -3.0e38F;
  double sum = 0;
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    const int64_t count = HWY_MIN(kBlock, V - begin);
    const float* x = row + begin;
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
      const VF drop = exp(d, hn::Set(d, largest - top));
      sum *= hn::GetLane(drop);
      largest = top;
    }
    const VF shift = hn::Set(d, largest);
    VF sum0 = hn::Zero(d);
    VF sum1 = hn::Zero(d);
    for (i = 0; i + 2 * lanes <= count; i += 2 * lanes) {
      sum0 = hn::Add(sum0, exp(d, hn::Sub(hn::LoadU(d, x + i), shift)));
      sum1 = hn::Add(sum1, exp(d, hn::Sub(hn::LoadU(d, x + i + lanes), shift)));
    }
    for (; i + lanes <= count; i += lanes) {
      sum0 = hn::Add(sum0, exp(d, hn::Sub(hn::LoadU(d, x + i), shift)));
    }
    sum += sum_of(d, hn::Add(sum0, sum1));
    if (i < count) {
      const size_t rest = count - i;
      const VF last = exp(d, hn::Sub(load_part(d, x + i, rest), shift));
      sum += sum_of(d, hn::IfThenElseZero(hn::FirstN(d, rest), last));
    }
  }
  result->largest = largest;
  result->sum = static_cast<float>(sum);
}

void SoftmaxGradient(float scale, float largest, int64_t V, float* row) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF shift = hn::Set(d, largest);
  const VF scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + lanes <= V; i += lanes) {
    hn::StoreU(hn::Mul(scales, exp(d, hn::Sub(hn::LoadU(d, row + i), shift))), d, row + i);
  }
  if (i < V) {
    const size_t rest = V - i;
    const VF last = hn::Mul(scales, exp(d, hn::Sub(load_part(d, row + i, rest), shift)));
    store_part(d, last, row + i, rest);
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cmath>

namespace wick::cpu {

HWY_EXPORT(SoftmaxOfRow);
HWY_EXPORT(SoftmaxGradient);

void cross_entropy(const Context& context, const Tensor& targets, const CrossEntropyArgs& args,
                   const Tensor& logits, const Tensor& losses) {
  const int64_t V = logits.columns();
  constexpr int64_t kTaskLogits = 4096;  // some 3 us: two exponentials each
  for_ranges(context, logits.rows(), rows_of(kTaskLogits, V), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = logits.data<float>() + i * V;
      const int32_t target = targets.data<int32_t>()[i];
      if (target < 0) {
        losses.data<float>()[i] = 0;
        if (args.gradient_scale) {
          std::fill_n(row, V, 0.0F);
        }
        continue;
      }
      Softmax softmax{};
      HWY_DYNAMIC_DISPATCH(SoftmaxOfRow)(row, V, &softmax);
      losses.data<float>()[i] = std::log(softmax.sum) + softmax.largest - row[target];
      if (args.gradient_scale) {
        const float scale = args.gradient_scale.data<float>()[0];
        HWY_DYNAMIC_DISPATCH(SoftmaxGradient)(scale / softmax.sum, softmax.largest, V, row);
        row[target] -= scale;
      }
    }
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
