// Cross-entropy on CUDA; formula and shapes in core/backend.h.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

void cross_entropy(const Context& context, const Tensor& targets, const CrossEntropyArgs& args,
                   const Tensor& logits, const Tensor& losses);

}  // namespace wick::cuda
