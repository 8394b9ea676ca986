// Dense products on the CPU; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c);
void add_column_sums(const Context& context, const Tensor& x, const Tensor& out);

}  // namespace wick::cpu
