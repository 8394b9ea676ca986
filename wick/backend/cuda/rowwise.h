// Row-wise and element-wise kernels on CUDA; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

struct RmsNormResults {
  const Tensor &x, &weight, &rstd, &dy;
};

struct LayerNormResults {
  const Tensor &x, &weight, &mean_rstd, &dy;
};

void rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float eps,
              const Tensor& y, const Tensor& rstd);
void add_rms_norm(const Context& context, const Tensor& a, const Tensor& b, const Tensor& weight,
                  float eps, const Tensor& sum, const Tensor& y, const Tensor& rstd);
void rms_norm_backward(const Context& context, const RmsNormResults& forward, bool accumulate,
                       const Tensor& dx, const Tensor& dweight);
// y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps).  mean_rstd f32
// [T,2] (empty: not wanted).
void layer_norm(const Context& context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                float eps, const Tensor& y, const Tensor& mean_rstd);
void layer_norm_backward(const Context& context, const LayerNormResults& forward, bool accumulate,
                         const Tensor& dx, const Tensor& dweight, const Tensor& dbias);
// y = softmax of each row of x [T,C]; y may be x.
void softmax(const Context& context, const Tensor& x, const Tensor& y);
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
void add_column_sums(const Context& context, const Tensor& x, const Tensor& out);

}  // namespace wick::cuda
