// The forward and backward passes of one training step.
#pragma once

#include <span>

#include "wick/data/batcher.h"
#include "wick/models/decoder.h"

namespace wick {

struct StepTotals {
  double loss_sum = 0;  // nats, over all target tokens
  int64_t tokens = 0;
  int64_t target_tokens = 0;
};

// Adds to the gradients of all trainable parameters that of the mean loss over the target tokens of
// all the micro-batches together, so that it does not matter how a step is split into them.
// Micro-batch i runs with `first.step + i`. Stops early if the loss is not finite.
StepTotals run_micro_batches(Decoder& decoder, std::span<const MicroBatch> batches,
                             const StepContext& first);

}  // namespace wick
