// The running softmax of attention over tiles of keys, in the accumulators of their products.
#pragma once

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_tiles.cuh"

namespace wick::cuda {

// The running softmax of a warp's rows: this lane's are row lane/4 (half 0) and 8 below (half 1) of
// each block.
template <int kBlocks>
struct RunningSoftmax {
  float largest[kBlocks][2];  // of the scores so far, before the scale
  float sum[kBlocks][2];      // of this lane's columns

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      largest[i][0] = largest[i][1] = -INFINITY;
      sum[i][0] = sum[i][1] = 0.0F;
    }
  }

  // Replaces scores by 2^(scale2 (score - largest)), and brings the sums and o, whose layout is
  // that of tiles of T, to the new largest.
  template <int kKeys, int kD, class T = __nv_bfloat16>
  __device__ __forceinline__ void step(float scale2, float (&scores)[kBlocks][kKeys / 8][4],
                                       float (&o)[kBlocks][kD / 8][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = weigh<kKeys>(i, half, scale2, scores);
        rescale<kD, T>(i, half, factor, o);
      }
    }
  }

  // The same without o: returns what a row of it is to be multiplied by.
  template <int kKeys>
  __device__ __forceinline__ float weigh(int i, int half, float scale2,
                                         float (&scores)[kBlocks][kKeys / 8][4]) {
    float top = largest[i][half];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      top = fmaxf(top, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(~0U, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0U, top, 2));
    const float shift = top == -INFINITY ? 0.0F : top * scale2;  // a row may see no key yet
    const float factor = fast_exp2(largest[i][half] * scale2 - shift);
    float added = 0.0F;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int c = 2 * half; c < 2 * half + 2; ++c) {
        scores[i][j][c] = fast_exp2(scores[i][j][c] * scale2 - shift);
        added += scores[i][j][c];
      }
    }
    sum[i][half] = sum[i][half] * factor + added;
    largest[i][half] = top;
    return factor;
  }

  template <int kD, class T = __nv_bfloat16>
  __device__ __forceinline__ static void rescale(int i, int half, float factor,
                                                 float (&o)[kBlocks][kD / 8][4]) {
    if (__any_sync(~0U, factor != 1.0F)) {  // after the first tiles, mostly not
      scale_half<kD, T>(i, half, factor, o);
    }
  }

  // Divides o by the sums; lse(row, value) receives the logarithms.
  template <int kD, class T = __nv_bfloat16, class Lse>
  __device__ __forceinline__ void finish(float scale2, float (&o)[kBlocks][kD / 8][4],
                                         const Lse& lse) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[i][half];
        total += __shfl_xor_sync(~0U, total, 1);
        total += __shfl_xor_sync(~0U, total, 2);
        const float inverse = total == 0.0F ? 0.0F : 1.0F / total;
        scale_half<kD, T>(i, half, inverse, o);
        lse(i * 16 + half * 8 + static_cast<int>(threadIdx.x % 32) / 4,
            total == 0.0F ? -INFINITY : (largest[i][half] * scale2 + log2f(total)) * kLn2);
      }
    }
  }
};

// Scores of keys that a row does not see become -inf; `keys` are those of the warp's rows.
template <int kBlocks, int kKeys>
__device__ __forceinline__ void mask_scores(const VisibleKeys* keys, int first_key,
                                            float (&scores)[kBlocks][kKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const VisibleKeys seen = keys[i * 16 + half * 8 + lane / 4];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        const int key = first_key + j * 8 + lane % 4 * 2;
        scores[i][j][2 * half] = seen.has(key) ? scores[i][j][2 * half] : -INFINITY;
        scores[i][j][2 * half + 1] = seen.has(key + 1) ? scores[i][j][2 * half + 1] : -INFINITY;
      }
    }
  }
}

}  // namespace wick::cuda
