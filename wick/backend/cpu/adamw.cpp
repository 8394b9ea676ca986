// AdamW in one pass, and the sum of squares for clipping.
#include "wick/backend/cpu/adamw.h"

#include <cmath>
#include <vector>

namespace wick::cpu {

void adamw(const Context& context, const Tensor& grad, const AdamwArgs& args, const Tensor& p,
           const Tensor& m, const Tensor& v) {
  const auto step = static_cast<double>(args.step);
  const auto correction1 = static_cast<float>(1.0 / (1.0 - std::pow(double{args.beta1}, step)));
  const auto correction2 = static_cast<float>(1.0 / (1.0 - std::pow(double{args.beta2}, step)));
  for (const AdamwSegment& segment : args.segments) {
    for_ranges(context, segment.count, 8192, [&](int64_t begin, int64_t end) {
      for (int64_t i = segment.begin + begin; i < segment.begin + end; ++i) {
        const float g = args.gradient_scale * grad.data<float>()[i];
        float& mean = m.data<float>()[i];
        float& square = v.data<float>()[i];
        float& value = p.data<float>()[i];
        mean = args.beta1 * mean + (1.0F - args.beta1) * g;
        square = args.beta2 * square + (1.0F - args.beta2) * g * g;
        const float direction =
            mean * correction1 / (std::sqrt(square * correction2) + args.epsilon);
        value -= segment.learning_rate * (segment.weight_decay * value + direction);
      }
    });
  }
}

void sum_squares(const Context& context, const Tensor& x, const Tensor& out) {
  constexpr int64_t kChunk = 8192;
  std::vector<double> sums((x.elements() + kChunk - 1) / kChunk);
  for_ranges(context, x.elements(), kChunk, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      sum += double{x.data<float>()[i]} * x.data<float>()[i];
    }
    sums[begin / kChunk] = sum;
  });
  double total = 0;
  for (const double sum : sums) {
    total += sum;
  }
  out.data<float>()[0] = static_cast<float>(total);
}

}  // namespace wick::cpu
