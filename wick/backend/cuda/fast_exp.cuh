// The exponential of the special-function unit, and softmax denominators that are joined.
#pragma once

#include <cuda_runtime.h>

namespace wick::cuda {

// e^x to some 2^-21 relative near 0 and |x| 2^-24 further out; results below 2^-126 are 0. One
// multiplication and one instruction: exp and __expf spend more on subnormal results.
__device__ __forceinline__ float fast_exp(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634F));
  return power;
}

// 1 / (1 + e^-x); 0 where e^-x overflows.
__device__ __forceinline__ float fast_sigmoid(float x) {
  return __fdividef(1.0F, 1.0F + fast_exp(-x));
}

// Below all logits but -infinity; finite, so that differences of it are no NaN.
constexpr float kNoLogit = -3.0e38F;

// sum of e^(x - largest) over some logits x; NaN where one of them is NaN.
struct SoftmaxSum {
  float largest;
  float sum;
};

// Joins groups of `lanes` neighbouring lanes, a power of two; each gets the result.
__device__ __forceinline__ SoftmaxSum join_lanes(SoftmaxSum own, unsigned lanes) {
  float largest = own.largest;
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, offset));
  }
  float sum = own.sum * fast_exp(own.largest - largest);
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0U, sum, offset);
  }
  return {largest, sum};
}

// Joins the warps of a block, the lanes of each of which agree; `parts` is shared memory for 32.
__device__ __forceinline__ SoftmaxSum join_warps(SoftmaxSum own, SoftmaxSum* parts) {
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = own;
  }
  __syncthreads();
  const SoftmaxSum none{kNoLogit, 0};
  return join_lanes(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : none, 32);
}

}  // namespace wick::cuda
