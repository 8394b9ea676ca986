// A head's rotation, as rope and attention do it.
//
// A thread takes a run of kWide pairs (i, i + R/2), or kWide of the channels that do not rotate;
// kWide is 8, where rows of all tensors are runs of eight aligned elements, or 1.
#pragma once

#include "wick/backend/cuda/rows.cuh"

namespace wick::cuda {

struct HeadShape {
  int D, R;  // R of the D channels rotate

  // Threads a head needs.
  template <int kWide>
  __host__ __device__ int runs() const {
    return (R / 2 + D - R) / kWide;
  }
};

template <int kWide>
__device__ __forceinline__ void turn_pairs(const float (&cosine)[kWide], const float (&sine)[kWide],
                                           float sign, float (&first)[kWide],
                                           float (&second)[kWide]) {
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    const float x = first[j];
    const float s = sign * sine[j];
    first[j] = x * cosine[j] - second[j] * s;
    second[j] = second[j] * cosine[j] + x * s;
  }
}

// Run `run` of the head `from`; angles is the table's row of its position.
template <int kWide, class T>
__device__ __forceinline__ void rotate_run(const T* from, const float* angles, float sign,
                                           const HeadShape& shape, int run, T* to) {
  const int half = shape.R / 2;
  const int i = run * kWide;
  float first[kWide];
  if (i >= half) {
    load_run(from + i + half, first);
    store_run(first, to + i + half);
    return;
  }
  float second[kWide];
  float cosine[kWide];
  float sine[kWide];
  load_run(from + i, first);
  load_run(from + half + i, second);
  load_run(angles + i, cosine);
  load_run(angles + half + i, sine);
  turn_pairs(cosine, sine, sign, first, second);
  store_run(first, to + i);
  store_run(second, to + half + i);
}

}  // namespace wick::cuda
