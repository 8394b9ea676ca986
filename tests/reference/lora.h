// Scalar twins of the LoRA kernels in core/backend.h.
#pragma once

#include <cstdint>

#include "tests/reference/matmul.h"

namespace wick::reference {

template <class Num>
struct Adapter {
  const Num* a;  // [R, in]
  const Num* b;  // [out, R]
  int64_t rank;
  Num scaling;
};

struct LoraSize {
  int64_t T, in, out;
  int64_t s_stride;  // columns of s
};

// row_adapter null: every row uses adapter 0.
template <class Num>
void lora_forward(const Num* x, const Adapter<Num>* adapters, const int32_t* row_adapter,
                  const LoraSize& size, Num* s, Num* y) {
  for (int64_t t = 0; t < size.T; ++t) {
    const int32_t chosen = row_adapter == nullptr ? 0 : row_adapter[t];
    if (chosen < 0) {
      continue;
    }
    const Adapter<Num>& adapter = adapters[chosen];
    Num* s_row = s + t * size.s_stride;
    for (int64_t r = 0; r < adapter.rank; ++r) {
      s_row[r] = Num(0);
      for (int64_t i = 0; i < size.in; ++i) {
        s_row[r] += x[t * size.in + i] * adapter.a[r * size.in + i];
      }
    }
    for (int64_t o = 0; o < size.out; ++o) {
      Num sum(0);
      for (int64_t r = 0; r < adapter.rank; ++r) {
        sum += s_row[r] * adapter.b[o * adapter.rank + r];
      }
      y[t * size.out + o] += adapter.scaling * sum;
    }
  }
}

// dx null: not wanted.
template <class Num>
void lora_backward(const Num* x, const Num* s, const Num* dy, const Adapter<Num>& adapter,
                   const LoraSize& size, Num* ds, Num* da, Num* db, Num* dx) {
  const int64_t R = adapter.rank;
  for (int64_t t = 0; t < size.T; ++t) {
    for (int64_t r = 0; r < R; ++r) {
      Num sum(0);
      for (int64_t o = 0; o < size.out; ++o) {
        const Num dy_to = adapter.scaling * dy[t * size.out + o];
        sum += dy_to * adapter.b[o * R + r];
        db[o * R + r] += dy_to * s[t * R + r];
      }
      ds[t * R + r] = sum;
      for (int64_t i = 0; i < size.in; ++i) {
        da[r * size.in + i] += sum * x[t * size.in + i];
        if (dx != nullptr) {
          dx[t * size.in + i] += sum * adapter.a[r * size.in + i];
        }
      }
    }
  }
}

}  // namespace wick::reference
