// Row-wise and element-wise kernels on the CPU; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

void gate(const Context& context, const Tensor& g, const Tensor& u, Activation activation,
          const Tensor& h);
void gate_backward(const Context& context, const Tensor& g, const Tensor& u, const Tensor& dh,
                   Activation activation, const Tensor& dg, const Tensor& du);
void add(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y);
void fill(const Context& context, float value, const Tensor& y);
void cast(const Context& context, const Tensor& x, const Tensor& y);
void dropout(const Context& context, const Tensor& x, const DropoutArgs& args, const Tensor& y);
void gather_rows(const Context& context, const Tensor& table, const Tensor& ids, const Tensor& y);
void scatter_add_rows(const Context& context, const Tensor& x, const Tensor& ids,
                      const Tensor& table);

}  // namespace wick::cpu
