// One evaluation a value.
#include "tests/support/complex_step.h"

#include <cassert>

namespace wick::test {

std::vector<std::vector<double>> complex_step(const std::function<Complex(const Arrays&)>& function,
                                              const std::vector<std::vector<float>>& inputs) {
  constexpr double kStep = 1e-30;
  Arrays arrays;
  for (const std::vector<float>& input : inputs) {
    arrays.emplace_back(input.begin(), input.end());
  }
  std::vector<std::vector<double>> gradients;
  for (std::vector<Complex>& array : arrays) {
    std::vector<double>& gradient = gradients.emplace_back();
    for (Complex& value : array) {
      const Complex before = value;
      value += Complex(0, kStep);
      gradient.push_back(function(arrays).imag() / kStep);
      value = before;
    }
  }
  return gradients;
}

Complex dot(const std::vector<Complex>& a, const std::vector<float>& b) {
  assert(a.size() == b.size());
  Complex sum(0);
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * static_cast<double>(b[i]);
  }
  return sum;
}

}  // namespace wick::test
