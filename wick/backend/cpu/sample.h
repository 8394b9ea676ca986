// Drawing one token on the CPU; the rule is in core/backend.h.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

void sample(const Context& context, const SampleArgs& args, const Tensor& logits, const Tensor& id);

}  // namespace wick::cpu
