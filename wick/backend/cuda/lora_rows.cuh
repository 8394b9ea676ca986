// The low-rank kernels without tensor cores, for any type, size and alignment: few rows, f32, and
// rows that each name their adapter.
#pragma once

#include <cstdint>
#include <span>

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

// The parts of lora_forward that are wanted. Without `shrink`, s is read.
struct ForwardParts {
  bool shrink = true;
  bool expand = true;
  bool accumulate = true;
};

void lora_forward_rows(const Context& context, const Tensor& x,
                       std::span<const LoraFactors> adapters, const Tensor& row_adapter,
                       const ForwardParts& parts, const Tensor& s, const Tensor& y);

void lora_backward_rows(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                        const LoraFactors& adapter, const Tensor& ds, const Tensor& da,
                        const Tensor& db, const Tensor& dx);

}  // namespace wick::cuda
