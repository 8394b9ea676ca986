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

// What a row may be made of and become on the way; null: it is there, the outputs are wanted.
struct RowEnds {
  const NormedInput* norm = nullptr;
  const GatedResult* gated = nullptr;
};

// `args` describes `terms` but for how blocks share them. Returns false, and has done nothing but
// write there, where it does not take them.
bool linears_row(const Context& context, std::span<const LinearTerm> terms, LinearsArgs& args,
                 DType activations, const RowEnds& ends);

}  // namespace wick::cuda
