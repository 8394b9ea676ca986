// What the scalar reference kernels need of their number type: float, double or
// std::complex<double>.
//
// A complex number carries an infinitesimal imaginary part (the complex step: f'(x) = Im f(x + ih)
// / h, exact to rounding), so branches look at the real part and no conjugate is ever taken.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>

namespace wick::reference {

inline float real_part(float x) {
  return x;
}
inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

template <class Num>
Num sigmoid(const Num& x) {
  return Num(1) / (Num(1) + std::exp(-x));
}

}  // namespace wick::reference
