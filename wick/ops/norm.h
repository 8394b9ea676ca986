// RMS norm over the last axis (Zhang and Sennrich, 2019), with gradients of x and weight.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// y = weight * x / sqrt(mean(x^2) + eps).  x [..., C]; weight [C]; y of x's dtype.
// Only 1/sqrt(..) of each row is kept: the output carries the recipe that rebuilds it from x.
Var rms_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight, float eps);

// sum = a + b and its norm, in one kernel where the back end has one. Pass the only handle of b to
// have the sum written over it.
struct SumAndNorm {
  Var sum;
  Var normed;
};
SumAndNorm add_rms_norm(Backend& backend, Tape* tape, const Var& a, Var b, const Parameter& weight,
                        float eps);

}  // namespace wick
