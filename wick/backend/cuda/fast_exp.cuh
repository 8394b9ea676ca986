// The exponential of the special-function unit, and softmax denominators that are joined.
#pragma once

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

__device__ __forceinline__ SoftmaxSum join(SoftmaxSum a, SoftmaxSum b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * fast_exp(a.largest - largest) + b.sum * fast_exp(b.largest - largest)};
}

}  // namespace wick::cuda
