// y = x W^T (+ bias) + scaling * dropout(x) A^T B^T, with gradients of A, B and x, and of W and
// bias where they are trainable; one layer, or several that read the same x.
//
// Kept for backward: x (or its recipe), the [T, R] product of x and A, and nothing of the dropout,
// whose mask is drawn again.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "wick/autograd/tape.h"

namespace wick {

struct LoraTerm {
  const Parameter& a;  // [R, in], f32
  const Parameter& b;  // [out, R], f32
  float scaling = 1.0F;
  DropoutArgs dropout;  // probability 0: none
};

struct LinearInputs {
  const Parameter* weight;
  const Parameter* bias = nullptr;
  std::optional<LoraTerm> lora = std::nullopt;
};

// Shapes as `linear`, one output a layer.
std::vector<Var> linear_group(Backend& backend, Tape* tape, const Var& x,
                              std::span<const LinearInputs> layers);

// gate(g, u) of a group of two, without a tape: then no back end need keep g and u.
Var gated_group(Backend& backend, const Var& x, std::span<const LinearInputs> g_and_u,
                Activation activation);

// The same two of a norm: x = rms_norm(input.sum), as of Backend::normed_linears. Without a tape.
std::vector<Var> normed_group(Backend& backend, const NormedInput& input,
                              std::span<const LinearInputs> layers);
Var normed_gated_group(Backend& backend, const NormedInput& input,
                       std::span<const LinearInputs> g_and_u, Activation activation);

Var lora_linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                const Parameter* bias, const LoraTerm& lora);

}  // namespace wick
