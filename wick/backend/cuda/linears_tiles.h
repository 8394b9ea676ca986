// Linear layers of a few tens of rows on tensor cores.
#pragma once

#include <span>

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

// From kFewRows (see lora.h) to this many rows a layer is still bound by reading its weight.
inline constexpr int64_t kTileLinearRows = 64;

// Backend::linears for up to kTileLinearRows rows and small weights: one launch for all products
// and adapters; where rows name theirs, or they have many ranks, a shrink for each layer with
// adapters before it. Returns false, and has done nothing, where it does not take the types or
// sizes, or where no layer has adapters.
bool linears_in_tiles(const Context& context, const Tensor& x, std::span<const LinearTerm> terms);

}  // namespace wick::cuda
