// Linear layers of one row: what linears.cu hands to linears_row.cu.
#pragma once

#include <span>

#include "wick/backend/cuda/linears_kernel.cuh"

namespace wick::cuda {

// h = act(g) u, where the two terms are g and u.
struct GatedResult {
  Activation activation;
  const Tensor& h;
};

// `args` describes `terms` but for how blocks share them. Returns false, and has done nothing but
// write there, where it does not take them; `gated`: null where the outputs themselves are wanted.
bool linears_row(const Context& context, std::span<const LinearTerm> terms, LinearsArgs& args,
                 DType activations, const GatedResult* gated);

}  // namespace wick::cuda
