// Attention, its cache and the rotary embedding on CUDA; formulas and shapes in core/backend.h.
#pragma once

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

struct AttentionResults {
  const Tensor &q, &k, &v, &o, &lse, &d_o;
};

void attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& spans, const AttentionArgs& args, const Tensor& o, const Tensor& lse);
void attention_backward(const Context& context, const AttentionResults& forward,
                        const Tensor& spans, const AttentionArgs& args, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv);
void kv_append(const Context& context, const Tensor& x, const Tensor& slots, const Tensor& cache);
void rope(const Context& context, const Tensor& x, const Tensor& positions, const Tensor& table,
          RopeDirection direction, const Tensor& y);
void rope_append(const Context& context, const Tensor& positions, const Tensor& table,
                 const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
                 const Tensor& v_cache);

}  // namespace wick::cuda
