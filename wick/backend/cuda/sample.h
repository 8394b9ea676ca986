// Drawing one token on CUDA; the rule is in core/backend.h.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

void sample(const Context& context, const SampleArgs& args, const Tensor& logits, const Tensor& id);

}  // namespace wick::cuda
