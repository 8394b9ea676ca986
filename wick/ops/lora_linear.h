// y = x W^T (+ bias) + scaling * dropout(x) A^T B^T, with gradients of A, B and x, and of W and
// bias where they are trainable.
//
// Kept for backward: x (or its recipe), the [T, R] product of x and A, and nothing of the dropout,
// whose mask is drawn again.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

struct LoraTerm {
  const Parameter& a;  // [R, in], f32
  const Parameter& b;  // [out, R], f32
  float scaling = 1.0F;
  DropoutArgs dropout;  // probability 0: none
};

// Shapes as `linear`.
Var lora_linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                const Parameter* bias, const LoraTerm& lora);

}  // namespace wick
