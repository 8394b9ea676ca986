// Between vectors and tensors, and deterministic random values, for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "wick/core/backend.h"

namespace wick::test {

Tensor to_device(Backend& backend, const std::vector<float>& values, const Shape& shape);
Tensor to_device(Backend& backend, const std::vector<int32_t>& values, const Shape& shape);
// Of an f32 tensor.
std::vector<float> to_host(Backend& backend, const Tensor& tensor);

// Normal, of the given deviation; another stream gives other values.
std::vector<float> draw(int64_t count, uint64_t stream, float deviation = 1.0F);

// The largest |a - b|, over the largest |b| (0 / 0 is 0). Infinite where sizes differ or a value
// is NaN.
template <class A, class B>
double relative_difference(const A& a, const B& b) {
  if (a.size() != b.size()) {
    return HUGE_VAL;
  }
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double gap = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (std::isnan(gap)) {
      return HUGE_VAL;
    }
    difference = std::max(difference, gap);
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return difference == 0 ? 0 : difference / size;
}

}  // namespace wick::test
