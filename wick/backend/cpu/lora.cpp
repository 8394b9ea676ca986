// The low-rank products of an adapter.
#include "wick/backend/cpu/lora.h"

namespace wick::cpu {

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  const int64_t in = x.columns();
  const int64_t out = y.columns();
  for_ranges(context, x.rows(), 8, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const int32_t chosen = row_adapter ? row_adapter.data<int32_t>()[t] : 0;
      if (chosen < 0) {
        continue;
      }
      const LoraFactors& adapter = adapters[chosen];
      const int64_t R = adapter.a.rows();
      const float* x_row = x.data<float>() + t * in;
      float* s_row = s.data<float>() + t * s.columns();
      float* y_row = y.data<float>() + t * out;
      for (int64_t r = 0; r < R; ++r) {
        float sum = 0;
        for (int64_t i = 0; i < in; ++i) {
          sum += x_row[i] * adapter.a.data<float>()[r * in + i];
        }
        s_row[r] = sum;
      }
      for (int64_t o = 0; o < out; ++o) {
        float sum = 0;
        for (int64_t r = 0; r < R; ++r) {
          sum += s_row[r] * adapter.b.data<float>()[o * R + r];
        }
        y_row[o] += adapter.scaling * sum;
      }
    }
  });
}

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  const int64_t T = x.rows();
  const int64_t in = x.columns();
  const int64_t out = dy.columns();
  const int64_t R = adapter.a.rows();
  const float* a = adapter.a.data<float>();
  const float* b = adapter.b.data<float>();
  for_ranges(context, T, 8, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      float* ds_row = ds.data<float>() + t * R;
      std::fill_n(ds_row, R, 0.0F);
      for (int64_t o = 0; o < out; ++o) {
        const float dy_to = adapter.scaling * dy.data<float>()[t * out + o];
        for (int64_t r = 0; r < R; ++r) {
          ds_row[r] += dy_to * b[o * R + r];
        }
      }
      for (int64_t r = 0; dx && r < R; ++r) {
        float* dx_row = dx.data<float>() + t * in;
        for (int64_t i = 0; i < in; ++i) {
          dx_row[i] += ds_row[r] * a[r * in + i];
        }
      }
    }
  });
  for_ranges(context, in, 64, [&](int64_t i0, int64_t i1) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t r = 0; r < R; ++r) {
        const float scale = ds.data<float>()[t * R + r];
        for (int64_t i = i0; i < i1; ++i) {
          da.data<float>()[r * in + i] += scale * x.data<float>()[t * in + i];
        }
      }
    }
  });
  for_ranges(context, out, 64, [&](int64_t o0, int64_t o1) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t o = o0; o < o1; ++o) {
        const float dy_to = adapter.scaling * dy.data<float>()[t * out + o];
        for (int64_t r = 0; r < R; ++r) {
          db.data<float>()[o * R + r] += dy_to * s.data<float>()[t * R + r];
        }
      }
    }
  });
}

}  // namespace wick::cpu
