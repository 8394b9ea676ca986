// Dense products on the CPU; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c);
// out[n] += the sum over T rows of x[n], `stride` values from one row to the next; on this thread.
void add_rows(const float* x, int64_t stride, int64_t T, int64_t columns, float* out);

void add_column_sums(const Context& context, const Tensor& x, const Tensor& out);

}  // namespace wick::cpu
