// Element-wise ops: the gated activation and the residual sum.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// h = act(g) * u, all [T, F]. The output carries the recipe that rebuilds it from g and u; backward
// overwrites them with their gradients where no one else holds them.
Var gate(Backend& backend, Tape* tape, const Var& g, const Var& u, Activation activation);

// a + b. Pass the only handle of b to have the sum written over it.
Var add(Backend& backend, Tape* tape, const Var& a, Var b);

// The parts of `add` that a kernel which sums on its way shares: the check, where the sum goes
// (over b where no one else holds it), and the sum as a Var.
void check_same_shape(const char* op, const Var& a, const Var& b);
Tensor place_of_sum(Backend& backend, const Var& a, const Var& b);
Var record_sum(Tape* tape, const Var& a, const Var& b, Tensor sum);

}  // namespace wick
