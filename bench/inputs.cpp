// Random inputs for cases.
#include "bench/inputs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "wick/base/random.h"

namespace wick::bench {

std::vector<float> normal_values(int64_t count, float deviation, uint64_t stream) {
  const Random random(1, stream);
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = deviation * random.normal(static_cast<uint64_t>(i));
  }
  return values;
}

Tensor normal_tensor(Backend& backend, const Shape& shape, float deviation, uint64_t stream,
                     DType dtype) {
  Tensor wide = tensor_of(backend, normal_values(shape.elements(), deviation, stream), shape);
  if (dtype == DType::f32) {
    return wide;
  }
  Tensor narrow = backend.allocate(shape, dtype);
  backend.cast(wide, narrow);
  return narrow;
}

NormalPool::NormalPool(Backend& backend, float deviation, DType dtype)
    : backend_(backend), values_(normal_tensor(backend, {1 << 20}, deviation, 5, dtype)) {}

void NormalPool::fill(uint64_t stream, Out to) const {
  const int64_t size = values_.elements();
  const auto start = static_cast<int64_t>(stream % static_cast<uint64_t>(size));
  for (int64_t done = 0; done < to.elements();) {
    const int64_t from = (start + done) % size;
    const int64_t count = std::min(size - from, to.elements() - done);
    backend_.copy(values_.part(from, {count}), to.part(done, {count}));
    done += count;
  }
}

Tensor tensor_of(Backend& backend, std::span<const int32_t> values) {
  Tensor tensor = backend.allocate({static_cast<int64_t>(values.size())}, DType::i32);
  backend.upload(std::as_bytes(values), tensor);
  return tensor;
}

Tensor tensor_of(Backend& backend, std::span<const float> values, const Shape& shape) {
  Tensor tensor = backend.allocate(shape, DType::f32);
  backend.upload(std::as_bytes(values), tensor);
  return tensor;
}

AdamwScalars::AdamwScalars(Backend& backend)
    : schedule(tensor_of(backend, std::array{1e-4F, 10.0F, 1000.0F}, {3})),
      square_sum(tensor_of(backend, std::array{1.0F}, {1})) {}

AdamwArgs AdamwScalars::args(std::span<const AdamwSegment> segments) const {
  AdamwArgs args;
  args.square_sum = square_sum;
  args.schedule = schedule;
  args.segments = segments;
  return args;
}

std::vector<float> values_of(Backend& backend, const Tensor& tensor) {
  Tensor wide = tensor;
  if (tensor.dtype() != DType::f32) {
    wide = backend.allocate(tensor.shape(), DType::f32);
    backend.cast(tensor, wide);
  }
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  backend.download(wide, std::as_writable_bytes(std::span(values)));
  return values;
}

double relative_error(std::span<const float> got, std::span<const double> wanted) {
  double largest = 0;
  double worst = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - wanted[i]);
    if (std::isnan(difference)) {
      return std::numeric_limits<double>::infinity();
    }
    worst = std::max(worst, difference);
    largest = std::max(largest, std::abs(wanted[i]));
  }
  return largest == 0 ? worst : worst / largest;
}

std::vector<double> widened(std::span<const float> values) {
  return {values.begin(), values.end()};
}

}  // namespace wick::bench
