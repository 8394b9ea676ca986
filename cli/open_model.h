// Opening what --model and --adapter name.
#pragma once

#include <span>

#include "cli/common_options.h"
#include "wick/lora/attach.h"
#include "wick/nn/linear_layer.h"

namespace wick {

// Puts the adapter that `flags` names, if any, on the layers of the model. Warns where it changes
// nothing, or was trained on another base. The result must live as long as the layers are used.
AttachedAdapter attach_adapter(Backend& backend, std::span<LinearLayer* const> layers,
                               const ModelFlags& flags);

}  // namespace wick
