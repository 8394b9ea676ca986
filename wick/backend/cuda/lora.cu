// Which low-rank kernel does what.
#include "wick/backend/cuda/lora.h"

#include "wick/backend/cuda/lora_rows.cuh"

namespace wick::cuda {

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  lora_forward_rows(context, x, adapters, row_adapter, {}, s, y);
}

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  lora_backward_rows(context, x, s, dy, adapter, ds, da, db, dx);
}

void lora_shrink(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& s) {
  lora_forward_rows(context, x, adapters, row_adapter, {.shrink = true, .expand = false}, s, {});
}

void lora_expand(const Context& context, const Tensor& s, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& y) {
  lora_forward_rows(context, {}, adapters, row_adapter,
                    {.shrink = false, .expand = true, .accumulate = false}, s, y);
}

}  // namespace wick::cuda
