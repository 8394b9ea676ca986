// Random inputs for cases, and results brought back for checking.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/core/backend.h"

namespace wick::bench {

// Normal numbers of the given deviation; the same for the same `stream`.
std::vector<float> normal_values(int64_t count, float deviation, uint64_t stream);
Tensor normal_tensor(Backend& backend, const Shape& shape, float deviation, uint64_t stream,
                     DType dtype = DType::f32);
// Large tensors of them: drawn once, then read from another place for each `stream`.
class NormalPool {
 public:
  NormalPool(Backend& backend, float deviation, DType dtype);
  void fill(uint64_t stream, Out to) const;  // of the pool's type

 private:
  Backend& backend_;
  Tensor values_;
};

Tensor tensor_of(Backend& backend, std::span<const int32_t> values);
Tensor tensor_of(Backend& backend, std::span<const float> values, const Shape& shape);
// What AdamwArgs wants: a learning rate of 1e-4 at the first step, and a gradient of norm 1.
struct AdamwScalars {
  explicit AdamwScalars(Backend& backend);
  AdamwArgs args(std::span<const AdamwSegment> segments) const;
  Tensor schedule;
  Tensor square_sum;
};
// Of any floating-point type, as f32.
std::vector<float> values_of(Backend& backend, const Tensor& tensor);

// max |got - wanted| / max |wanted|
double relative_error(std::span<const float> got, std::span<const double> wanted);

std::vector<double> widened(std::span<const float> values);

}  // namespace wick::bench
