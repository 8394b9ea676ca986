// LoRA's low-rank products on CUDA, and whole linear layers of few rows; formulas and shapes in
// core/backend.h.
#pragma once

#include <cstdint>
#include <span>

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y);
// The same, but overwrites y.
void lora_delta(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                const Tensor& row_adapter, const Tensor& s, const Tensor& y);
void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx);

struct LoraLinearGradients {
  Tensor ds, da, db, dx;
};

// Backend::lora_linear_backward, as far as one product of many rows is faster. Returns false, and
// has done nothing, where it is not.
bool lora_linear_backward(const Context& context, const LoraLinearInputs& inputs, bool accumulate,
                          const LoraLinearGradients& gradients);

// The two halves of lora_forward. Shrink: s[t,:R_g] = x[t] A_g^T. Expand overwrites:
// y[t] = scaling_g s[t,:R_g] B_g^T, and 0 where row t has no adapter; a product that accumulates
// then adds the frozen layer without another pass over y.
void lora_shrink(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& s);
void lora_expand(const Context& context, const Tensor& s, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& y);

// Backend::linears for many rows of bf16 (before 9.0: for more than a few) with one adapter of up
// to 64 ranks: the products are left in f32 until the low-rank change has been added. cuBLASLt
// rounds a product to bf16 before it adds to what is there, and an adapter's first steps are less
// than what bf16 then resolves.
bool takes_onto_product(const Context& context, const Tensor& x, const LinearTerm& term);
void linears_onto_products(const Context& context, const Tensor& x,
                           std::span<const LinearTerm> terms);

// Up to this many rows a linear layer is bound by reading its weight once.
inline constexpr int64_t kFewRows = 8;

// Backend::linears for 1 to kFewRows rows, in as few launches as there can be. Returns false, and
// has done nothing, where it does not take the types or sizes.
bool linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms);

// Those of Backend for one row, in one launch; else as linears_few_rows.
bool gated_linears_row(const Context& context, const Tensor& x, std::span<const LinearTerm> terms,
                       Activation activation, const Tensor& h);
bool normed_linears_row(const Context& context, const NormedInput& input,
                        std::span<const LinearTerm> terms);
bool normed_gated_linears_row(const Context& context, const NormedInput& input,
                              std::span<const LinearTerm> terms, Activation activation,
                              const Tensor& h);

}  // namespace wick::cuda
