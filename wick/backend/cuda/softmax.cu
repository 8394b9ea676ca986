// Softmax of rows: the warps' maxima and sums are made alone and joined behind one barrier.
#include "wick/backend/cuda/fast_exp.cuh"
#include "wick/backend/cuda/rows.cuh"
#include "wick/backend/cuda/rowwise.h"

namespace wick::cuda {

namespace {

template <int kVectors, class T>
__global__ void __launch_bounds__(kRowThreads)
    softmax_kernel(const T* x, int64_t rows, int C, T* y) {
  using Own = Columns<kVectors>;
  constexpr int kWidth = Own::kWidth;
  __shared__ SoftmaxSum parts[32];
  const int64_t t = row_of_thread();
  const int columns = t < rows ? C : 0;
  typename Own::Values values;
  const auto read = [&](int k, int c) {
    if constexpr (!Own::kKept) {
      load_run(x + t * C + c, values[k]);
    }
  };
  float largest = kNoLogit;
  Own::each(columns, [&](int k, int c) {
    load_run(x + t * C + c, values[k]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      largest = fmaxf(largest, values[k][i]);
    }
  });
  const unsigned lanes = min(blockDim.x, 32U);
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, offset));
  }
  float sum = 0;
  Own::each(columns, [&](int k, int c) {
    read(k, c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float power = fast_exp(values[k][i] - largest);
      sum += power;
      if constexpr (Own::kKept) {
        values[k][i] = power;
      }
    }
  });
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0U, sum, offset);
  }
  SoftmaxSum all{largest, sum};
  if (blockDim.x > 32) {
    all = join_warps(all, parts);
  }
  // What is kept is relative to the warp's own maximum.
  const float scale = (Own::kKept ? fast_exp(largest - all.largest) : 1.0F) / all.sum;
  Own::each(columns, [&](int k, int c) {
    read(k, c);
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float power = Own::kKept ? values[k][i] : fast_exp(values[k][i] - all.largest);
      out[i] = power * scale;
    }
    store_run(out, y + t * C + c);
  });
}

}  // namespace

void softmax(const Context& context, const Tensor& x, const Tensor& y) {
  const int64_t rows = x.rows();
  const int64_t C = x.columns();
  if (rows == 0 || C == 0) {
    return;
  }
  with_activation(x, [&]<class T>(T* from) {
    auto* to = static_cast<T*>(y.address());
    const RowPlan plan = plan_rows(rows, C, in_runs(C, {from, to}));
    with_vectors(plan, [&](auto vectors) {
      softmax_kernel<vectors.value>
          <<<plan.grid, plan.block, 0, context.stream>>>(from, rows, static_cast<int>(C), to);
      check_launch("softmax");
    });
  });
}

}  // namespace wick::cuda
