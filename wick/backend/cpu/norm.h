// Kernels that normalise each row, on the CPU: RMS norm, layer norm, softmax; formulas and shapes
// in core/backend.h.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/tensor.h"

namespace wick::cpu {

struct RmsNormResults {
  const Tensor &x, &weight, &rstd, &dy;
};

struct LayerNormInputs {
  const Tensor &x, &weight, &bias;
};

struct LayerNormResults {
  const Tensor &x, &weight, &mean_rstd, &dy;
};

struct LayerNormGradients {
  const Tensor &dx, &dweight, &dbias;
};

void rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float eps,
              const Tensor& y, const Tensor& rstd);
void rms_norm_backward(const Context& context, const RmsNormResults& forward, bool accumulate,
                       const Tensor& dx, const Tensor& dweight);
void layer_norm(const Context& context, const LayerNormInputs& in, float eps, const Tensor& y,
                const Tensor& mean_rstd);
void layer_norm_backward(const Context& context, const LayerNormResults& forward, bool accumulate,
                         const LayerNormGradients& gradients);
void softmax(const Context& context, const Tensor& x, const Tensor& y);

}  // namespace wick::cpu
