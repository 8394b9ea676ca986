// The optimiser's kernels on CUDA; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

void adamw(const Context& context, const Tensor& grad, const AdamwArgs& args, const Tensor& p,
           const Tensor& m, const Tensor& v);
void sum_squares(const Context& context, const Tensor& x, const Tensor& out);

}  // namespace wick::cuda
