// What the tests of ops share: device tensors, and comparison with the scalar reference.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/complex_step.h"
#include "tests/support/host_tensor.h"
#include "wick/autograd/tape.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"

namespace wick::test {

using Floats = std::vector<float>;
using Gradients = std::vector<std::vector<double>>;

// Relative to the largest value of the tensor.
inline constexpr double kOpTolerance = 1e-5;

class OpsTest : public testing::Test {
 protected:
  Tensor device(const Floats& values, const Shape& shape) {
    return to_device(*backend_, values, shape);
  }
  Parameter trained(const std::string& name, const Floats& values, const Shape& shape) {
    Parameter parameter{name, device(values, shape), backend_->allocate(shape, DType::f32)};
    backend_->fill(0.0F, parameter.grad);
    return parameter;
  }
  void expect_close(const Tensor& actual, const std::vector<double>& expected, const char* what) {
    ASSERT_TRUE(actual) << what;
    EXPECT_LT(relative_difference(to_host(*backend_, actual), expected), kOpTolerance) << what;
  }
  // The value: the reference at the inputs themselves.
  void expect_value(const Tensor& actual,
                    const std::function<std::vector<Complex>(const Arrays&)>& f,
                    const std::vector<Floats>& inputs) {
    Arrays arrays;
    for (const Floats& input : inputs) {
      arrays.emplace_back(input.begin(), input.end());
    }
    std::vector<double> expected;
    for (const Complex& value : f(arrays)) {
      expected.push_back(value.real());
    }
    expect_close(actual, expected, "value");
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace wick::test
