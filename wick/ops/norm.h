// RMS norm (Zhang and Sennrich, 2019) and layer norm (Ba, Kiros and Hinton, 2016) over the last
// axis, with gradients of x, weight and bias.
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

// y = weight * (x - mean) / sqrt(variance + eps) + bias.  x [..., C] f32; weight, bias [C]; a bias
// without a value is zero. Only mean and 1/sqrt(..) of each row are kept, as above.
Var layer_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
               const Parameter& bias, float eps);

}  // namespace wick
