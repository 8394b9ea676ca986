// Elements as they are stored, and runs of eight of them as a thread reads and writes them.
//
// Kernels are templates on the stored type of their activations (float or __nv_bfloat16) and, where
// they read weights, on theirs (also __half); `with_activation` and `with_weight` choose by DType.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "wick/core/tensor.h"

namespace wick::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
__device__ __forceinline__ float to_float(__half value) {
  return __half2float(value);
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// Eight neighbours as floats; `from` and `to` are aligned to eight elements.
template <class T>
__device__ __forceinline__ void load8(const T* from, float (&values)[8]) {
  if constexpr (sizeof(T) == 4) {
    const float4 low = reinterpret_cast<const float4*>(from)[0];
    const float4 high = reinterpret_cast<const float4*>(from)[1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    const T* narrow = reinterpret_cast<const T*>(&words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] = to_float(narrow[i]);
    }
  }
}

template <class T>
__device__ __forceinline__ void store8(const float (&values)[8], T* to) {
  if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
  } else {
    uint4 words;
    T* narrow = reinterpret_cast<T*>(&words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      narrow[i] = from_float<T>(values[i]);
    }
    *reinterpret_cast<uint4*>(to) = words;
  }
}

// Calls function(static_cast<const T*>(address)) with the stored type T.
template <class Function>
void with_activation(const Tensor& tensor, const Function& function) {
  if (tensor.dtype() == DType::bf16) {
    function(static_cast<__nv_bfloat16*>(tensor.address()));
  } else {
    function(static_cast<float*>(tensor.address()));
  }
}

template <class Function>
void with_weight(const Tensor& tensor, const Function& function) {
  if (tensor.dtype() == DType::f16) {
    function(static_cast<__half*>(tensor.address()));
  } else {
    with_activation(tensor, function);
  }
}

}  // namespace wick::cuda
