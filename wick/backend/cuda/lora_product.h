// A frozen linear layer and its adapter in one pass over x; see lora_product.cuh.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

// y = x W^T + scaling s B^T + bias and s = x A^T, of rows of bf16 with one adapter of up to 64 ranks; s
// and A are rounded to bf16 as in lora_forward, scaling B in place of B. Returns false, and has done
// nothing, where it does not take the types or sizes, or the device is not of compute capability 9.0.
bool lora_product(const Context& context, const Tensor& x, const LinearTerm& term);

// Whether it would, and in less time than lora_deltas and a product. Depends on shapes and the device
// alone.
bool lora_product_gains(const Context& context, const Tensor& x, const LinearTerm& term);

}  // namespace wick::cuda
