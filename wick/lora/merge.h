// Adds an adapter into the weights it adapts.
#pragma once

#include "wick/core/backend.h"
#include "wick/nn/linear_layer.h"

namespace wick {

// W becomes W + scaling B A, computed in f32 and rounded once to `stored`, in new memory; the slot
// is emptied. A layer without an adapter stays as it is. Throws Error where the adapter was rounded
// (AttachedAdapter::keep_for_inference).
void merge_into(Backend& backend, LinearLayer& layer, DType stored);

}  // namespace wick
