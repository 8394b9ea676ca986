// Rows of a table by token id.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// table [V, C] of any weight dtype; ids i32 [T], each in [0, V) (the caller has checked them).
// Returns [T, C] of the given dtype.
Var embedding(Backend& backend, Tape* tape, const Parameter& table, const Tensor& ids,
              DType dtype = DType::f32);

}  // namespace wick
