// A frozen linear layer and its adapter in one product, and the gradient of its input; see
// lora_product.cuh and lora_product_dx.cu.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

// y = x W^T + scaling s B^T + bias and s = x A^T, of rows of bf16 with one adapter of up to 64
// ranks; s and A are rounded to bf16 as in lora_forward, scaling B in place of B. Returns false,
// and has done nothing, where it does not take the types or sizes, or the device is not of compute
// capability 9.0.
bool lora_product(const Context& context, const Tensor& x, const LinearTerm& term);

// Whether it would, and in less time than linears_onto_products. Depends on shapes and the
// device alone.
bool lora_product_gains(const Context& context, const Tensor& x, const LinearTerm& term);

// dx = dy W + ds A, or dx += with `accumulate`.
struct InputGradient {
  Tensor dy;      // [T, N]
  Tensor weight;  // [N, K]
  Tensor ds;      // [T, R]
  bool accumulate;
  Tensor dx;  // [T, K]
};

// Whether lora_product_dx takes the types and sizes, and, the second, whether it takes less time
// than a product and another pass over dx.
bool takes_lora_product_dx(const Context& context, const InputGradient& gradient);
bool lora_product_dx_gains(const Context& context, const InputGradient& gradient);

// With A [R, K] in f32, rounded to bf16. Only where it takes the gradient.
void lora_product_dx(const Context& context, const InputGradient& gradient, const Tensor& a);

}  // namespace wick::cuda
