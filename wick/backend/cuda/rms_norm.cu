// RMS norm, alone or after a residual sum, and its gradient: one pass over the row.
#include "wick/backend/cuda/column_sums.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/lora.h"
#include "wick/backend/cuda/rows.cuh"
#include "wick/backend/cuda/rowwise.h"

namespace wick::cuda {

namespace {

template <class T>
struct Residual {
  const T *a, *b;
  T* sum;  // may be a or b
};

// x is `from.a`, or with kAdd the stored sum, as if `add` had come first.
template <int kVectors, bool kAdd, class T, class W>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_kernel(Residual<T> from, const W* __restrict__ weight, float eps, int64_t rows, int C,
                    T* y, float* rstd) {
  using Own = Columns<kVectors>;
  constexpr int kWidth = Own::kWidth;
  __shared__ float parts[kRowWarps];
  const int64_t t = row_of_thread();
  const int columns = t < rows ? C : 0;
  typename Own::Values x;
  typename Own::Values weights;
  float squares = 0;
  let_next_start();
  if constexpr (Own::kKept) {
    Own::each(columns, [&](int k, int c) { load_run(weight + c, weights[k]); });
  }
  wait_for_previous();
  Own::each(columns, [&](int k, int c) {
    load_run(from.a + t * C + c, x[k]);
    if constexpr (kAdd) {
      float other[kWidth];
      load_run(from.b + t * C + c, other);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[k][i] = to_float(from_float<T>(x[k][i] + other[i]));
      }
      store_run(x[k], from.sum + t * C + c);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      squares += x[k][i] * x[k][i];
    }
  });
  const float mean = reduce_row(squares, parts, Plus()) / static_cast<float>(C);
  const float scale = 1.0F / sqrtf(mean + eps);
  Own::each(columns, [&](int k, int c) {
    if constexpr (!Own::kKept) {
      load_run((kAdd ? from.sum : from.a) + t * C + c, x[k]);
      load_run(weight + c, weights[k]);
    }
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = x[k][i] * scale * weights[k][i];
    }
    store_run(out, y + t * C + c);
  });
  if (rstd != nullptr && t < rows && threadIdx.x == 0) {
    rstd[t] = scale;
  }
}

template <class T>
struct RmsBackward {
  const T* x;
  const float* rstd;
  const T* dy;
  bool accumulate;
  T* dx;
};

template <int kVectors, class T, class W>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_backward_kernel(RmsBackward<T> of, const W* __restrict__ weight, int64_t rows, int C) {
  using Own = Columns<kVectors>;
  constexpr int kWidth = Own::kWidth;
  __shared__ float parts[kRowWarps];
  const int64_t t = row_of_thread();
  const int columns = t < rows ? C : 0;
  typename Own::Values x;
  typename Own::Values pull;  // w dy
  const auto read = [&](int k, int c) {
    load_run(of.x + t * C + c, x[k]);
    load_run(of.dy + t * C + c, pull[k]);
    float weights[kWidth];
    load_run(weight + c, weights);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      pull[k][i] *= weights[i];
    }
  };
  const float scale = t < rows ? of.rstd[t] : 0.0F;
  float products = 0;
  Own::each(columns, [&](int k, int c) {
    read(k, c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      products += pull[k][i] * x[k][i];
    }
  });
  const float mean = reduce_row(products, parts, Plus()) / static_cast<float>(C);
  const float back = scale * scale * scale * mean;
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
      out[i] += scale * pull[k][i] - back * x[k][i];
    }
    store_run(out, dx);
  });
}

template <bool kAdd, class T>
void norm_rows(const Context& context, const Residual<T>& from, const Tensor& weight, float eps,
               const Tensor& y, const Tensor& rstd) {
  const int64_t rows = y.rows();
  const int64_t C = y.columns();
  if (rows == 0) {
    return;
  }
  with_weight(weight, [&](const auto* weights) {
    const RowPlan plan =
        plan_rows(rows, C, in_runs(C, {from.a, from.b, from.sum, weights, y.address()}));
    with_vectors(plan, [&](auto vectors) {
      using W = std::remove_cvref_t<decltype(*weights)>;
      launch_early(context, rows <= kFewRows, rms_norm_kernel<vectors.value, kAdd, T, W>, plan.grid,
                   plan.block, 0, from, weights, eps, rows, static_cast<int>(C),
                   static_cast<T*>(y.address()), rstd ? rstd.data<float>() : nullptr);
      check_launch("rms_norm");
    });
  });
}

// dweight[c] += sum_t dy x rstd.
template <class T>
struct WeightTerms {
  static constexpr int kSums = 1;
  const T *x, *dy;
  const float* rstd;
  int64_t C;

  template <int kWidth>
  __device__ void add(int64_t t, int64_t c, float (&sums)[1][kWidth]) const {
    float own[kWidth];
    float gradient[kWidth];
    load_run(x + t * C + c, own);
    load_run(dy + t * C + c, gradient);
    const float scale = rstd[t];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sums[0][i] += gradient[i] * own[i] * scale;
    }
  }
};

}  // namespace

void rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float eps,
              const Tensor& y, const Tensor& rstd) {
  with_activation(x, [&]<class T>(T* from) {
    norm_rows<false, T>(context, {from, nullptr, nullptr}, weight, eps, y, rstd);
  });
}

void add_rms_norm(const Context& context, const Tensor& a, const Tensor& b, const Tensor& weight,
                  float eps, const Tensor& sum, const Tensor& y, const Tensor& rstd) {
  with_activation(a, [&]<class T>(T* from) {
    norm_rows<true, T>(context,
                       {from, static_cast<const T*>(b.address()), static_cast<T*>(sum.address())},
                       weight, eps, y, rstd);
  });
}

void rms_norm_backward(const Context& context, const RmsNormResults& forward, bool accumulate,
                       const Tensor& dx, const Tensor& dweight) {
  const int64_t rows = forward.x.rows();
  const int64_t C = forward.x.columns();
  if (rows == 0) {
    return;
  }
  const float* rstd = forward.rstd.data<float>();
  with_activation(forward.x, [&]<class T>(T* x) {
    const auto* dy = static_cast<const T*>(forward.dy.address());
    if (dweight) {  // before dx, which may be dy
      add_columns(context, WeightTerms<T>{x, dy, rstd, C}, rows, C, in_runs(C, {x, dy}),
                  {{dweight.data<float>()}});
    }
    with_weight(forward.weight, [&](const auto* weights) {
      const RowPlan plan = plan_rows(rows, C, in_runs(C, {x, dy, weights, dx.address()}));
      with_vectors(plan, [&](auto vectors) {
        rms_norm_backward_kernel<vectors.value><<<plan.grid, plan.block, 0, context.stream>>>(
            RmsBackward<T>{x, rstd, dy, accumulate, static_cast<T*>(dx.address())}, weights, rows,
            static_cast<int>(C));
        check_launch("rms_norm_backward");
      });
    });
  });
}

}  // namespace wick::cuda
