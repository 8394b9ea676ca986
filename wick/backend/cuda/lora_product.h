// A frozen linear layer and its adapter in one pass over x; see lora_product.cuh.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

// y = x W^T + scaling s B^T + bias and s = x A^T, of many rows of bf16 and one adapter. Returns
// false, and has done nothing, where it does not take the types or sizes, or would not be faster.
bool lora_product(const Context& context, const Tensor& x, const LinearTerm& term);

}  // namespace wick::cuda
