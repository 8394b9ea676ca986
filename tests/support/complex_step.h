// Exact gradients of a scalar reference: f'(x) = Im f(x + ih) / h with h too small to matter
// (Squire and Trapp, 1998). No subtraction, so no step size to choose.
#pragma once

#include <complex>
#include <functional>
#include <vector>

namespace wick::test {

using Complex = std::complex<double>;
using Arrays = std::vector<std::vector<Complex>>;

// The gradient of `function` in each value of each input, in the order of the inputs.
std::vector<std::vector<double>> complex_step(const std::function<Complex(const Arrays&)>& function,
                                              const std::vector<std::vector<float>>& inputs);

// sum a_i b_i.
Complex dot(const std::vector<Complex>& a, const std::vector<float>& b);

}  // namespace wick::test
