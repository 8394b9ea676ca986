// LoRA's low-rank products on the CPU; formulas and shapes in core/backend.h.
#pragma once

#include <span>

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y);
void lora_delta(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                const Tensor& row_adapter, const Tensor& s, const Tensor& y);
void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx);

}  // namespace wick::cpu
