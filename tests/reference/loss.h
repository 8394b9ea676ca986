// Scalar twins of the loss and optimiser kernels in core/backend.h.
#pragma once

#include <cstdint>

#include "tests/reference/number.h"
#include "wick/core/kernel_args.h"

namespace wick::reference {

template <class Num>
void cross_entropy(const int32_t* targets, const CrossEntropyArgs& args, int64_t n, int64_t V,
                   Num* logits, Num* losses) {
  for (int64_t i = 0; i < n; ++i) {
    Num* row = logits + i * V;
    double largest = -INFINITY;
    for (int64_t v = 0; v < V; ++v) {
      if (real_part(row[v]) > largest) {
        largest = real_part(row[v]);
      }
    }
    Num sum(0);
    for (int64_t v = 0; v < V; ++v) {
      sum += std::exp(row[v] - Num(largest));
    }
    losses[i] = std::log(sum) + Num(largest) - row[targets[i]];
    if (args.gradient) {
      for (int64_t v = 0; v < V; ++v) {
        const Num p = std::exp(row[v] - Num(largest)) / sum;
        row[v] = Num(args.gradient_scale) * (v == targets[i] ? p - Num(1) : p);
      }
    }
  }
}

template <class Num>
Num sum_squares(const Num* x, int64_t count) {
  Num sum(0);
  for (int64_t i = 0; i < count; ++i) {
    sum += x[i] * x[i];
  }
  return sum;
}

template <class Num>
void adamw(const Num* grad, const AdamwArgs& args, Num* p, Num* m, Num* v) {
  const double correction1 = 1 - std::pow(double{args.beta1}, static_cast<double>(args.step));
  const double correction2 = 1 - std::pow(double{args.beta2}, static_cast<double>(args.step));
  for (const AdamwSegment& segment : args.segments) {
    for (int64_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      const Num g = Num(args.gradient_scale) * grad[i];
      m[i] = Num(args.beta1) * m[i] + Num(1 - double{args.beta1}) * g;
      v[i] = Num(args.beta2) * v[i] + Num(1 - double{args.beta2}) * g * g;
      const Num direction =
          (m[i] / Num(correction1)) / (std::sqrt(v[i] / Num(correction2)) + Num(args.epsilon));
      p[i] -= Num(segment.learning_rate) * (Num(segment.weight_decay) * p[i] + direction);
    }
  }
}

}  // namespace wick::reference
