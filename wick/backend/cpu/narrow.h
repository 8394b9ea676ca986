// The stored number types as C++ types that no arithmetic mixes up, and the way from DType to them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "wick/core/tensor.h"

namespace wick::cpu {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline float to_f32(float x) {
  return x;
}
inline float to_f32(Bf16 x) {
  return bf16_to_f32(x.bits);
}
inline float to_f32(F16 x) {
  return f16_to_f32(x.bits);
}

// Calls body(pointer to the first element) with the type of the elements.
template <class Body>
void with_elements(const Tensor& tensor, const Body& body) {
  switch (tensor.dtype()) {
    case DType::bf16:
      body(tensor.data<Bf16>());
      break;
    case DType::f16:
      body(tensor.data<F16>());
      break;
    default:
      body(tensor.data<float>());
  }
}

// The elements as f32.
inline void widen(const Tensor& tensor, float* to) {
  with_elements(tensor, [&](const auto* values) {
    std::transform(values, values + tensor.elements(), to,
                   [](auto value) { return to_f32(value); });
  });
}

}  // namespace wick::cpu
