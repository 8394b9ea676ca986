// The activations of gated layers, with their slopes.
#pragma once

#include "wick/backend/cuda/fast_exp.cuh"

namespace wick::cuda {

struct Activated {
  float value, slope;
};

// gelu's tanh form is x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
template <bool kGelu>
__device__ __forceinline__ Activated activate(float x) {
  if constexpr (!kGelu) {
    const float open = fast_sigmoid(x);
    const float value = x * open;
    return {value, open + value * (1.0F - open)};
  }
  constexpr float kTwice = 2 * 0.7978845608F;
  const float square = x * x;
  const float open = fast_sigmoid(kTwice * x * (1.0F + 0.044715F * square));
  const float value = x * open;
  const float slope = kTwice * (1.0F + 3 * 0.044715F * square);
  return {value, open + value * (1.0F - open) * slope};
}

}  // namespace wick::cuda
