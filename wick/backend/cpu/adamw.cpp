// AdamW in one pass over gradient, moments and parameters; and the sum of squares for clipping.
#include "wick/backend/cpu/adamw.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/adamw.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_ADAMW_SHARED_
#define WICK_BACKEND_CPU_ADAMW_SHARED_
#include <limits>

namespace wick::cpu {

// The scalars of AdamwArgs in the form that the inner loop wants.
struct AdamwFactors {
  float scale;                     // of a gradient, by clipping
  float mean_share, square_share;  // of a gradient in the mean and in the square: 1 - beta
  // Of the bias corrections c = 1 / (1 - beta^step), which are thus no work of a value:
  // m c1 / (sqrt(v c2) + epsilon) = (c1 / sqrt(c2)) m / (sqrt(v) + epsilon / sqrt(c2)).
  float epsilon;
  float correction;  // c1 / sqrt(c2)
  float learning_rate;
  float decay;  // 1 - learning_rate * weight_decay
};

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// n / d for d > 0, to 1.1 ulp. Square roots keep the divider busy for 10 clocks of Zen 4 a vector,
// and a division for 6; this takes 4 of the multipliers instead, where estimates have 14 bits: the
// product of d and the estimate says by how much it is off, and the square of that is left.
HWY_INLINE VF quotient([[maybe_unused]] DF df, VF n, VF d) {
#if HWY_TARGET == HWY_AVX3
  const VF inverse = hn::ApproximateReciprocal(d);
  const VF estimate = hn::Mul(n, inverse);
  // No number where d is infinite and its inverse 0: here max takes its second operand then.
  const VF off = hn::Max(hn::NegMulAdd(d, inverse, hn::Set(df, 1.0F)), hn::Set(df, -1.0F));
  return hn::MulAdd(estimate, off, estimate);
#else
  return hn::Div(n, d);
#endif
}

void AdamwRange(const float* grad, const AdamwFactors& f, int64_t count, float* p, float* m,
                float* v) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // All in registers: the compiler cannot know that the stores below leave f alone.
  const VF scale = hn::Set(d, f.scale);
  const VF mean_share = hn::Set(d, f.mean_share);
  const VF square_share = hn::Set(d, f.square_share);
  const VF epsilon = hn::Set(d, f.epsilon);
  const VF step = hn::Set(d, f.learning_rate * f.correction);
  const VF decay = hn::Set(d, f.decay);
  const VF least = hn::Set(d, std::numeric_limits<float>::lowest());
  const auto update = [&](VF g, VF& value, VF& mean, VF& square) HWY_ATTR {
    // The multipliers bind: hence differences, which are for the adders.
    const VF scaled = hn::Mul(scale, g);
    mean = hn::MulAdd(mean_share, hn::Sub(scaled, mean), mean);
    // Finite, so that a square that is infinite stays so; NaN stays NaN, the second operand.
    const VF growth = hn::Max(least, hn::MulSub(scaled, scaled, square));
    square = hn::MulAdd(square_share, growth, square);
    const VF root = hn::Sqrt(square);
    const VF change = quotient(d, hn::Mul(step, mean), hn::Add(root, epsilon));
    value = hn::MulSub(decay, value, change);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    VF value = hn::LoadU(d, p + i);
    VF mean = hn::LoadU(d, m + i);
    VF square = hn::LoadU(d, v + i);
    update(hn::LoadU(d, grad + i), value, mean, square);
    hn::StoreU(value, d, p + i);
    hn::StoreU(mean, d, m + i);
    hn::StoreU(square, d, v + i);
  }
  if (i < count) {
    const size_t rest = count - i;
    VF value = load_part(d, p + i, rest);
    VF mean = load_part(d, m + i, rest);
    VF square = load_part(d, v + i, rest);
    update(load_part(d, grad + i, rest), value, mean, square);
    store_part(d, value, p + i, rest);
    store_part(d, mean, m + i, rest);
    store_part(d, square, v + i, rest);
  }
}

float SumSquares(const float* x, int64_t count) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF sum0 = hn::Zero(d);
  VF sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const VF x0 = hn::LoadU(d, x + i);
    const VF x1 = hn::LoadU(d, x + i + lanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
  }
  float sum = sum_of(d, hn::Add(sum0, sum1));
  for (; i < count; ++i) {
    sum += x[i] * x[i];
  }
  return sum;
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cmath>
#include <vector>

namespace wick::cpu {

HWY_EXPORT(AdamwRange);
HWY_EXPORT(SumSquares);

namespace {

constexpr int64_t kTaskElements = 16384;

// What a gradient with this sum of squares is multiplied by, as torch.nn.utils.clip_grad_norm_
// does.
double clip_factor(float square_sum, float limit) {
  if (limit <= 0) {
    return 1.0;
  }
  const double norm = std::sqrt(double{square_sum});
  return std::min(1.0, double{limit} / (norm + 1e-6));
}

}  // namespace

void adamw(const Context& context, const Tensor& grad, const AdamwArgs& args, const Tensor& p,
           const Tensor& m, const Tensor& v) {
  const float square_sum = args.square_sum.data<float>()[0];
  if (!std::isfinite(square_sum)) {
    return;
  }
  const float* schedule = args.schedule.data<float>();
  const float learning_rate = schedule[0];
  AdamwFactors factors{};
  const double root_of_correction2 = std::sqrt(double{schedule[2]});
  factors.scale = static_cast<float>(clip_factor(square_sum, args.max_gradient_norm));
  factors.mean_share = static_cast<float>(1.0 - double{args.beta1});
  factors.square_share = static_cast<float>(1.0 - double{args.beta2});
  factors.epsilon = static_cast<float>(args.epsilon / root_of_correction2);
  factors.correction = static_cast<float>(schedule[1] / root_of_correction2);

  struct Task {
    const AdamwSegment* segment;
    int64_t begin, count;
  };
  int64_t values = 0;
  for (const AdamwSegment& segment : args.segments) {
    values += segment.count;
  }
  const int64_t most = task_parameters(context, values);
  std::vector<Task> tasks;  // over all segments, so that many small ones still make one run
  tasks.reserve(values / most + args.segments.size());
  for (const AdamwSegment& segment : args.segments) {
    for (int64_t at = 0; at < segment.count; at += most) {
      tasks.push_back({&segment, segment.begin + at, std::min(most, segment.count - at)});
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  const bool serial = values <= most;
  // All threads have read the parameters.
  const bool shared = context.pool.threads() > 1 && values <= kMostShared;
  for_ranges(context, count, serial ? std::max<int64_t>(count, 1) : 1,
             [factors, learning_rate, shared, all = tasks.data(), grads = grad.data<float>(),
              ps = p.data<float>(), ms = m.data<float>(),
              vs = v.data<float>()](int64_t first, int64_t last) {
               for (int64_t i = first; i < last; ++i) {
                 const auto [segment, begin, size] = all[i];
                 AdamwFactors own = factors;
                 own.learning_rate = learning_rate * segment->learning_rate_ratio;
                 own.decay =
                     static_cast<float>(1.0 - double{own.learning_rate} * segment->weight_decay);
                 if (shared) {
                   claim_lines(ps + begin, size);
                 }
                 HWY_DYNAMIC_DISPATCH(AdamwRange)
                 (grads + begin, own, size, ps + begin, ms + begin, vs + begin);
               }
             });
}

void sum_squares(const Context& context, const Tensor& x, const Tensor& out) {
  std::vector<float> sums(ceil_div(x.elements(), kTaskElements));
  for_ranges(context, x.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    sums[begin / kTaskElements] =
        HWY_DYNAMIC_DISPATCH(SumSquares)(x.data<float>() + begin, end - begin);
  });
  double total = 0;
  for (const float sum : sums) {
    total += sum;
  }
  out.data<float>()[0] = static_cast<float>(total);
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
