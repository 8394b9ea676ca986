// Layer norm and its gradient: one pass over the row, the variance from what is kept of it.
#include "wick/backend/cuda/column_sums.cuh"
#include "wick/backend/cuda/rows.cuh"
#include "wick/backend/cuda/rowwise.h"

namespace wick::cuda {

namespace {

template <class T>
struct LayerNormRows {
  const T* x;
  T* y;
  float* mean_rstd;  // null: not wanted
  float eps;
};

// bias null: none.
template <int kVectors, class T, class W>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_kernel(LayerNormRows<T> of, const W* __restrict__ weight, const W* __restrict__ bias,
                      int64_t rows, int C) {
  using Own = Columns<kVectors>;
  constexpr int kWidth = Own::kWidth;
  __shared__ float parts[2][kRowWarps];
  const int64_t t = row_of_thread();
  const int columns = t < rows ? C : 0;
  typename Own::Values x;
  typename Own::Values weights;
  typename Own::Values shifts;
  const auto read_parameters = [&](int k, int c) {
    load_run(weight + c, weights[k]);
    if (bias != nullptr) {
      load_run(bias + c, shifts[k]);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        shifts[k][i] = 0;
      }
    }
  };
  float sum = 0;
  Own::each(columns, [&](int k, int c) {
    load_run(of.x + t * C + c, x[k]);
    if constexpr (Own::kKept) {
      read_parameters(k, c);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum += x[k][i];
    }
  });
  const float mean = reduce_row(sum, parts[0], Plus()) / static_cast<float>(C);
  float squares = 0;
  Own::each(columns, [&](int k, int c) {
    if constexpr (!Own::kKept) {
      load_run(of.x + t * C + c, x[k]);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      squares += (x[k][i] - mean) * (x[k][i] - mean);
    }
  });
  const float variance = reduce_row(squares, parts[1], Plus()) / static_cast<float>(C);
  const float rstd = 1.0F / sqrtf(variance + of.eps);
  Own::each(columns, [&](int k, int c) {
    if constexpr (!Own::kKept) {
      load_run(of.x + t * C + c, x[k]);
      read_parameters(k, c);
    }
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = (x[k][i] - mean) * rstd * weights[k][i] + shifts[k][i];
    }
    store_run(out, of.y + t * C + c);
  });
  if (of.mean_rstd != nullptr && t < rows && threadIdx.x == 0) {
    of.mean_rstd[2 * t] = mean;
    of.mean_rstd[2 * t + 1] = rstd;
  }
}

template <class T>
struct LayerBackward {
  const T* x;
  const float* mean_rstd;
  const T* dy;
  bool accumulate;
  T* dx;
};

// With n = (x - mean) rstd and g = w dy: dx = rstd (g - mean(g) - n mean(g n)).
template <int kVectors, class T, class W>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_backward_kernel(LayerBackward<T> of, const W* __restrict__ weight, int64_t rows,
                               int C) {
  using Own = Columns<kVectors>;
  constexpr int kWidth = Own::kWidth;
  __shared__ float parts[2][kRowWarps];
  const int64_t t = row_of_thread();
  const int columns = t < rows ? C : 0;
  const float mean = t < rows ? of.mean_rstd[2 * t] : 0.0F;
  const float rstd = t < rows ? of.mean_rstd[2 * t + 1] : 0.0F;
  typename Own::Values n;
  typename Own::Values g;
  const auto read = [&](int k, int c) {
    load_run(of.x + t * C + c, n[k]);
    load_run(of.dy + t * C + c, g[k]);
    float weights[kWidth];
    load_run(weight + c, weights);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      n[k][i] = (n[k][i] - mean) * rstd;
      g[k][i] *= weights[i];
    }
  };
  float straight = 0;
  float products = 0;
  Own::each(columns, [&](int k, int c) {
    read(k, c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      straight += g[k][i];
      products += g[k][i] * n[k][i];
    }
  });
  const float mean_g = reduce_row(straight, parts[0], Plus()) / static_cast<float>(C);
  const float mean_gn = reduce_row(products, parts[1], Plus()) / static_cast<float>(C);
  Own::each(columns, [&](int k, int c) {
    if constexpr (!Own::kKept) {
      read(k, c);
    }
    T* dx = of.dx + t * C + c;
    float out[kWidth] = {};
    if (of.accumulate) {
      load_run(dx, out);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] += rstd * (g[k][i] - mean_g - n[k][i] * mean_gn);
    }
    store_run(out, dx);
  });
}

// dweight[c] += sum_t dy (x - mean) rstd;  dbias[c] += sum_t dy.
template <class T>
struct ParameterTerms {
  static constexpr int kSums = 2;
  const T *x, *dy;
  const float* mean_rstd;
  int64_t C;

  template <int kWidth>
  __device__ void add(int64_t t, int64_t c, float (&sums)[2][kWidth]) const {
    float own[kWidth];
    float gradient[kWidth];
    load_run(x + t * C + c, own);
    load_run(dy + t * C + c, gradient);
    const float mean = mean_rstd[2 * t];
    const float rstd = mean_rstd[2 * t + 1];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sums[0][i] += gradient[i] * ((own[i] - mean) * rstd);
      sums[1][i] += gradient[i];
    }
  }
};

template <class T, class W>
void norm_rows(const Context& context, const LayerNormRows<T>& of, const W* weight, const W* bias,
               int64_t rows, int64_t C) {
  const RowPlan plan = plan_rows(rows, C, in_runs(C, {of.x, of.y, weight, bias}));
  with_vectors(plan, [&](auto vectors) {
    layer_norm_kernel<vectors.value>
        <<<plan.grid, plan.block, 0, context.stream>>>(of, weight, bias, rows, static_cast<int>(C));
    check_launch("layer_norm");
  });
}

template <class W>
__global__ void widen_kernel(const W* from, int count, float* to) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) {
    to[i] = to_float(from[i]);
  }
}

void widen(const Context& context, const Tensor& from, float* to) {
  const int64_t count = from.elements();
  with_weight(from, [&](const auto* values) {
    widen_kernel<<<static_cast<unsigned>(ceil_div(count, 128)), 128, 0, context.stream>>>(
        values, static_cast<int>(count), to);
    check_launch("widen");
  });
}

}  // namespace

void layer_norm(const Context& context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                float eps, const Tensor& y, const Tensor& mean_rstd) {
  const int64_t rows = x.rows();
  const int64_t C = x.columns();
  if (rows == 0 || C == 0) {
    return;
  }
  with_activation(x, [&]<class T>(T* from) {
    const LayerNormRows<T> of{from, static_cast<T*>(y.address()),
                              mean_rstd ? mean_rstd.data<float>() : nullptr, eps};
    if (bias && bias.dtype() != weight.dtype()) {  // one kernel type is enough for so rare a mix
      const int64_t stride = ceil_div(C, 4) * 4;
      const Scratch wide(context, 2 * stride * sizeof(float));
      widen(context, weight, wide.as<float>());
      widen(context, bias, wide.as<float>() + stride);
      norm_rows<T, float>(context, of, wide.as<float>(), wide.as<float>() + stride, rows, C);
      return;
    }
    with_weight(weight, [&]<class W>(W* weights) {
      norm_rows<T, W>(context, of, weights, bias ? static_cast<const W*>(bias.address()) : nullptr,
                      rows, C);
    });
  });
}

void layer_norm_backward(const Context& context, const LayerNormResults& forward, bool accumulate,
                         const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  const int64_t rows = forward.x.rows();
  const int64_t C = forward.x.columns();
  if (rows == 0 || C == 0) {
    return;
  }
  const float* mean_rstd = forward.mean_rstd.data<float>();
  with_activation(forward.x, [&]<class T>(T* x) {
    const auto* dy = static_cast<const T*>(forward.dy.address());
    if (dweight || dbias) {  // before dx, which may be dy
      add_columns(
          context, ParameterTerms<T>{x, dy, mean_rstd, C}, rows, C, in_runs(C, {x, dy}),
          {{dweight ? dweight.data<float>() : nullptr, dbias ? dbias.data<float>() : nullptr}});
    }
    with_weight(forward.weight, [&](const auto* weights) {
      const RowPlan plan = plan_rows(rows, C, in_runs(C, {x, dy, weights, dx.address()}));
      with_vectors(plan, [&](auto vectors) {
        layer_norm_backward_kernel<vectors.value><<<plan.grid, plan.block, 0, context.stream>>>(
            LayerBackward<T>{x, mean_rstd, dy, accumulate, static_cast<T*>(dx.address())}, weights,
            rows, static_cast<int>(C));
        check_launch("layer_norm_backward");
      });
    });
  });
}

}  // namespace wick::cuda
