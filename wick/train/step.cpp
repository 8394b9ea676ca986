// A tape a micro-batch.
#include "wick/train/step.h"

#include <cmath>

namespace wick {

StepTotals run_micro_batches(Decoder& decoder, std::span<const MicroBatch> batches,
                             const StepContext& first) {
  StepTotals totals;
  for (const MicroBatch& batch : batches) {
    totals.tokens += batch.rows;
    totals.target_tokens += static_cast<int64_t>(batch.targets.size());
  }
  const float gradient_scale = 1.0F / static_cast<float>(totals.target_tokens);
  StepContext context = first;
  for (const MicroBatch& batch : batches) {
    const TokenBatch tokens = make_token_batch(decoder.backend(), batch.inputs);
    Tape tape(decoder.backend());
    const Var hidden = decoder.hidden(&tape, tokens, context);
    totals.loss_sum +=
        decoder.loss(&tape, hidden, {batch.target_rows, batch.targets}, gradient_scale, context);
    if (!std::isfinite(totals.loss_sum)) {
      break;
    }
    tape.backward();
    ++context.step;
  }
  return totals;
}

}  // namespace wick
