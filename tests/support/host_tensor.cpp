// Uploads, downloads and draws.
#include "tests/support/host_tensor.h"

#include <span>

#include "wick/base/random.h"

namespace wick::test {

Tensor to_device(Backend& backend, const std::vector<float>& values, const Shape& shape) {
  Tensor tensor = backend.allocate(shape, DType::f32);
  backend.upload(std::as_bytes(std::span(values)), tensor);
  return tensor;
}

Tensor to_device(Backend& backend, const std::vector<int32_t>& values, const Shape& shape) {
  Tensor tensor = backend.allocate(shape, DType::i32);
  backend.upload(std::as_bytes(std::span(values)), tensor);
  return tensor;
}

std::vector<float> to_host(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  backend.download(tensor, std::as_writable_bytes(std::span(values)));
  return values;
}

std::vector<float> draw(int64_t count, uint64_t stream, float deviation) {
  const Random random(20260101, stream);
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = deviation * random.normal(i);
  }
  return values;
}

}  // namespace wick::test
