// Scalar twins of the products in core/backend.h.
#pragma once

#include <cstdint>

#include "tests/reference/number.h"
#include "wick/core/kernel_args.h"

namespace wick::reference {

struct MatmulSize {
  int64_t M, N, K;
};

// c[M,N] = op(a) op(b) (+ c) (+ bias[N], unless null).
template <class Num>
void matmul(const Num* a, const Num* b, const Num* bias, MatmulForm form, bool accumulate,
            const MatmulSize& size, Num* c) {
  const auto [M, N, K] = size;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      Num sum = accumulate ? c[m * N + n] : Num(0);
      for (int64_t k = 0; k < K; ++k) {
        const Num left = form == MatmulForm::tn ? a[k * M + m] : a[m * K + k];
        const Num right = form == MatmulForm::nt ? b[n * K + k] : b[k * N + n];
        sum += left * right;
      }
      c[m * N + n] = bias == nullptr ? sum : sum + bias[n];
    }
  }
}

template <class Num>
void add_column_sums(const Num* x, int64_t T, int64_t N, Num* out) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      out[n] += x[t * N + n];
    }
  }
}

}  // namespace wick::reference
