// Element-wise ops: the gated activation and the residual sum.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// h = act(g) * u, all [T, F]. The output carries the recipe that rebuilds it from g and u; backward
// overwrites them with their gradients where no one else holds them.
Var gate(Backend& backend, Tape* tape, const Var& g, const Var& u, Activation activation);

// a + b. Pass the only handle of b to have the sum written over it.
Var add(Backend& backend, Tape* tape, const Var& a, Var b);

}  // namespace wick
