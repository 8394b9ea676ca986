// Cases, random inputs and the comparison of the conformance tests.
#include "tests/support/conformance.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "wick/backend/cpu/simd_targets.h"
#include "wick/backend/registry.h"
#include "wick/base/random.h"
// After the choice of targets:
#include <hwy/highway.h>

namespace wick::test {

namespace {

std::vector<int64_t> compiled_and_supported() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  return targets;
}

}  // namespace

std::vector<ConformanceCase> conformance_cases() {
  std::vector<ConformanceCase> cases;
  for (const std::string_view device : backend_names()) {
    if (device != "cpu") {
      cases.push_back({std::string(device), "", DType::f32});
      cases.push_back({std::string(device), "", DType::bf16});
      continue;
    }
    for (const int64_t target : compiled_and_supported()) {
      cases.push_back({"cpu", hwy::TargetName(target)});
    }
  }
  return cases;
}

void PrintTo(const ConformanceCase& which, std::ostream* out) {
  *out << which.device << " " << which.simd_target << " " << name_of(which.activations);
}

std::string name_of_case(const ::testing::TestParamInfo<ConformanceCase>& info) {
  const bool narrow = info.param.activations != DType::f32;
  return info.param.device + info.param.simd_target +
         (narrow ? "_" + std::string(name_of(info.param.activations)) : "");
}

double tolerance(DType type) {
  switch (type) {
    case DType::bf16:
      return 8e-3;
    case DType::f16:
      return 1e-3;
    default:
      return 2e-5;
  }
}

double rounded(double value, DType type) {
  const auto narrow = static_cast<float>(value);
  switch (type) {
    case DType::bf16:
      return bf16_to_f32(f32_to_bf16(narrow));
    case DType::f16:
      return f16_to_f32(f32_to_f16(narrow));
    default:
      return narrow;
  }
}

Tensor upload(Backend& backend, const Values& values, const Shape& shape, DType dtype) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    if (dtype == DType::f32) {
      std::memcpy(bytes.data() + i * 4, &value, 4);
    } else {
      const uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
      std::memcpy(bytes.data() + i * 2, &bits, 2);
    }
  }
  Tensor tensor = backend.allocate(shape, dtype);
  backend.upload(bytes, tensor);
  return tensor;
}

Tensor upload_ids(Backend& backend, const std::vector<int32_t>& ids, const Shape& shape) {
  Tensor tensor = backend.allocate(shape, DType::i32);
  backend.upload(std::as_bytes(std::span(ids)), tensor);
  return tensor;
}

Tensor poisoned(Backend& backend, const Shape& shape, DType dtype) {
  const Values values(shape.elements(), std::numeric_limits<double>::quiet_NaN());
  return upload(backend, values, shape, dtype);
}

Values download(Backend& backend, const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes());
  backend.download(tensor, bytes);
  Values values(tensor.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype() == DType::f32) {
      float value = 0;
      std::memcpy(&value, bytes.data() + i * 4, 4);
      values[i] = value;
    } else if (tensor.dtype() == DType::i32) {
      int32_t value = 0;
      std::memcpy(&value, bytes.data() + i * 4, 4);
      values[i] = value;
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + i * 2, 2);
      values[i] = tensor.dtype() == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
    }
  }
  return values;
}

void Conformance::SetUp() {
  for (const int64_t target : compiled_and_supported()) {
    if (GetParam().simd_target == hwy::TargetName(target)) {
      hwy::SetSupportedTargetsForTest(target);
    }
  }
  if (GetParam().device != "cpu") {
    backends_.push_back(make_backend(GetParam().device));
    return;
  }
  take_matmul_precision(MatmulPrecision::highest);
}

void Conformance::take_matmul_precision(MatmulPrecision precision) {
  backends_.clear();
  for (const int threads : {1, 2, 5}) {
    backends_.push_back(make_backend("cpu", {.threads = threads, .matmul_precision = precision}));
  }
}

void Conformance::TearDown() {
  hwy::SetSupportedTargetsForTest(0);
}

Values Conformance::random(int64_t count, DType dtype, double magnitude) {
  const Random source(17, draws_++);
  Values values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = rounded((2.0 * source.uniform(i) - 1.0) * magnitude, dtype);
  }
  return values;
}

std::vector<int32_t> Conformance::random_ids(int64_t count, int32_t bound) {
  const Random source(17, draws_++);
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(source.below(i, bound));
  }
  return ids;
}

void Conformance::expect_outputs(const Kernel& kernel, const std::vector<Values>& expected) {
  std::vector<Backend*> runs;
  for (const std::unique_ptr<Backend>& backend : backends_) {
    runs.push_back(backend.get());
  }
  if (runs.size() == 1) {
    runs.push_back(runs[0]);
  }
  std::vector<Values> first;
  for (size_t run = 0; run < runs.size(); ++run) {
    const std::vector<Tensor> outputs = kernel(*runs[run]);
    ASSERT_EQ(outputs.size(), expected.size());
    for (size_t output = 0; output < outputs.size(); ++output) {
      const Values actual = download(*runs[run], outputs[output]);
      ASSERT_EQ(actual.size(), expected[output].size()) << "output " << output;
      if (run > 0) {
        const auto bits = [](double value) { return std::bit_cast<uint64_t>(value); };
        ASSERT_TRUE(std::ranges::equal(actual, first[output], {}, bits, bits))
            << "output " << output << " of run " << run << " has other bits than the first";
        continue;
      }
      first.push_back(actual);
      expect_near(actual, expected[output], outputs[output].dtype(), output);
    }
  }
}

void Conformance::expect_near(const Values& actual, const Values& expected, DType dtype,
                              size_t output) const {
  // Narrow activations round what a kernel keeps between its parts too: an error in proportion to
  // all numbers of the output, and in those of full width as well. Sums of many rounded products
  // stray furthest from it, hence twice.
  const bool narrow = activations() != DType::f32;
  const double allowed = tolerance(narrow ? activations() : dtype);
  double square_sum = 0;
  for (const double value : expected) {
    square_sum += value * value;
  }
  const auto count = static_cast<double>(std::max<size_t>(1, expected.size()));
  const double size = narrow ? 2 * std::sqrt(square_sum / count) : 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double wanted = expected[i];
    ASSERT_LE(std::abs(actual[i] - wanted), allowed * (1 + size + std::abs(wanted)))
        << "output " << output << " element " << i << ": " << actual[i] << " for " << wanted;
  }
}

}  // namespace wick::test
