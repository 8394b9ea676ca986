// What both roads of attention's backward kernels on tensor cores share.
#pragma once

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_tiles.cuh"

namespace wick::cuda {

// T: bf16 or f32.
template <class T>
struct BackwardTensors {
  const T *q, *k, *v, *d_o;
  RowStatistics statistics;
  T *dq, *dk, *dv;
  float *dk_parts, *dv_parts;  // [parts,Tk,G,D], where parts > 1
  int parts;                   // shares of the heads of a group
};

// dk, dv of 16 keys of a warp from f32 sums: straight into a part of [Tk,G,D].
template <int kD>
__device__ __forceinline__ void store_part(const float (&acc)[1][kD / 8][4], float factor,
                                           int row_elements, int rows, int D, float* to) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      const int i = j * 8 + lane % 4 * 2;
      if (row < rows && i < D) {
        *reinterpret_cast<float2*>(to + static_cast<int64_t>(row) * row_elements + i) = {
            acc[0][j][2 * half] * factor, acc[0][j][2 * half + 1] * factor};
      }
    }
  }
}

template <int kD>
__device__ __forceinline__ void scale_rows(float factor, float (&acc)[1][kD / 8][4]) {
#pragma unroll
  for (int j = 0; j < kD / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      acc[0][j][c] *= factor;
    }
  }
}

// What the queries of a stage bring along, behind their two tiles.
template <int kOther>
struct StageRows {
  float2 of_head[kOther];
  VisibleKeys keys[kOther];
};

// The road of all devices, for heads of up to 128: dq, dk and dv, or the parts of dk and dv.
void backward_warps(const Context& context, const AttentionCall& call,
                    const BackwardTensors<__nv_bfloat16>& tensors);
void backward_warps(const Context& context, const AttentionCall& call,
                    const BackwardTensors<float>& tensors);

// The road of compute capability 9.0, for heads of 64 and 128: dq, dk and dv, or the parts of dk
// and dv. False, and nothing done, where it cannot be taken.
bool backward_groups(const Context& context, const AttentionCall& call,
                     const BackwardTensors<__nv_bfloat16>& tensors);

}  // namespace wick::cuda
