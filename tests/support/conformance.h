// The fixture of the conformance tests: one body for every back end and instruction set.
//
// A test describes a kernel call as a function of a back end that returns its output tensors. The
// fixture runs it with 1, 2 and 5 threads, or on a GPU twice, wants the same bits from each, and
// compares them with values from tests/reference. Outputs start as NaN, so that an element that is
// not written shows. Activations are of the type that the case names; a GPU has cases of each.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "wick/core/backend.h"

namespace wick::test {

using Values = std::vector<double>;

struct ConformanceCase {
  std::string device;
  std::string simd_target;  // as Highway names it; empty: no choice
  DType activations = DType::f32;
};
void PrintTo(const ConformanceCase& which, std::ostream* out);  // GoogleTest finds it by its name

std::vector<ConformanceCase> conformance_cases();
std::string name_of_case(const ::testing::TestParamInfo<ConformanceCase>& info);

// What a result of this number type may differ from the reference by, times (1 + |reference|).
double tolerance(DType type);

// `value` as a number of this type.
double rounded(double value, DType type);

Tensor upload(Backend& backend, const Values& values, const Shape& shape, DType dtype = DType::f32);
Tensor upload_ids(Backend& backend, const std::vector<int32_t>& ids, const Shape& shape);
Tensor poisoned(Backend& backend, const Shape& shape, DType dtype = DType::f32);
Values download(Backend& backend, const Tensor& tensor);

class Conformance : public ::testing::TestWithParam<ConformanceCase> {
 protected:
  void SetUp() override;
  void TearDown() override;

  DType activations() const { return GetParam().activations; }

  // Numbers that `dtype` holds exactly, uniform in [-magnitude, magnitude]; each call gives others.
  Values random(int64_t count, DType dtype = DType::f32, double magnitude = 1.0);
  std::vector<int32_t> random_ids(int64_t count, int32_t bound);

  // CPU: another set of back ends.
  void take_matmul_precision(MatmulPrecision precision);

  using Kernel = std::function<std::vector<Tensor>(Backend&)>;
  void expect_outputs(const Kernel& kernel, const std::vector<Values>& expected);

  std::vector<std::unique_ptr<Backend>> backends_;  // CPU: with 1, 2 and 5 threads; else one

 private:
  void expect_near(const Values& actual, const Values& expected, DType dtype, size_t output) const;

  uint64_t draws_ = 0;
};

}  // namespace wick::test
