// Scalar twins of the loss and optimiser kernels in core/backend.h.
#pragma once

#include <cstdint>

#include "tests/reference/number.h"
#include "wick/core/kernel_args.h"

namespace wick::reference {

// gradient_scale: null where the gradient is not wanted.
template <class Num>
void cross_entropy(const int32_t* targets, const float* gradient_scale, int64_t n, int64_t V,
                   Num* logits, Num* losses) {
  for (int64_t i = 0; i < n; ++i) {
    Num* row = logits + i * V;
    if (targets[i] < 0) {
      losses[i] = Num(0);
      for (int64_t v = 0; v < V && gradient_scale != nullptr; ++v) {
        row[v] = Num(0);
      }
      continue;
    }
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
    if (gradient_scale != nullptr) {
      for (int64_t v = 0; v < V; ++v) {
        const Num p = std::exp(row[v] - Num(largest)) / sum;
        row[v] = Num(*gradient_scale) * (v == targets[i] ? p - Num(1) : p);
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

// The scalars that the kernel reads from tensors.
struct AdamwStep {
  double learning_rate = 1e-3;
  int64_t step = 1;  // counts from 1
  double gradient_scale = 1.0;
};

template <class Num>
void adamw(const Num* grad, const AdamwArgs& args, const AdamwStep& scalars, Num* p, Num* m,
           Num* v) {
  const auto step = static_cast<double>(scalars.step);
  const double correction1 = 1 - std::pow(double{args.beta1}, step);
  const double correction2 = 1 - std::pow(double{args.beta2}, step);
  for (const AdamwSegment& segment : args.segments) {
    for (int64_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      const Num g = Num(scalars.gradient_scale) * grad[i];
      m[i] = Num(args.beta1) * m[i] + Num(1 - double{args.beta1}) * g;
      v[i] = Num(args.beta2) * v[i] + Num(1 - double{args.beta2}) * g * g;
      const Num direction =
          (m[i] / Num(correction1)) / (std::sqrt(v[i] / Num(correction2)) + Num(args.epsilon));
      const double learning_rate = scalars.learning_rate * double{segment.learning_rate_ratio};
      p[i] -= Num(learning_rate) * (Num(segment.weight_decay) * p[i] + direction);
    }
  }
}

}  // namespace wick::reference
