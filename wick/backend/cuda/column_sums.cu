// Sums of columns: gradients of biases.
#include "wick/backend/cuda/column_sums.cuh"

#include "wick/backend/cuda/rowwise.h"

namespace wick::cuda {

namespace {

template <class T>
struct ColumnTerms {
  static constexpr int kSums = 1;
  const T* x;
  int64_t C;

  template <int kWidth>
  __device__ void add(int64_t t, int64_t c, float (&sums)[1][kWidth]) const {
    float values[kWidth];
    load_run(x + t * C + c, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sums[0][i] += values[i];
    }
  }
};

}  // namespace

void add_column_sums(const Context& context, const Tensor& x, const Tensor& out) {
  const int64_t C = out.elements();
  with_activation(x, [&]<class T>(T* from) {
    const int64_t rows = C == 0 ? 0 : x.elements() / C;
    add_columns(context, ColumnTerms<T>{from, C}, rows, C, in_runs(C, {from}),
                {{out.data<float>()}});
  });
}

}  // namespace wick::cuda
