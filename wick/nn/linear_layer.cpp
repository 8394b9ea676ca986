// Chooses the op, and draws the dropout's stream for this layer and step.
#include "wick/nn/linear_layer.h"

#include "wick/base/random.h"
#include "wick/ops/linear.h"
#include "wick/ops/lora_linear.h"

namespace wick {
namespace {

DropoutArgs dropout_of(const LoraSlot& lora, const StepContext& context) {
  if (!context.training || lora.dropout == 0.0F) {
    return {};
  }
  const auto words = Random(context.seed, lora.stream).block(static_cast<uint64_t>(context.step));
  return {.probability = lora.dropout,
          .seed = context.seed,
          .stream = static_cast<uint64_t>(words[0]) | static_cast<uint64_t>(words[1]) << 32};
}

}  // namespace

bool LinearLayer::trainable() const {
  return weight.trainable() || (bias && bias->trainable()) ||
         (lora && (lora->a.trainable() || lora->b.trainable()));
}

Var LinearLayer::forward(Backend& backend, Tape* tape, const Var& x,
                         const StepContext& context) const {
  const Parameter* b = bias ? &*bias : nullptr;
  if (!lora) {
    return linear(backend, tape, x, weight, b);
  }
  const LoraTerm term{lora->a, lora->b, lora->scaling, dropout_of(*lora, context)};
  return lora_linear(backend, tape, x, weight, b, term);
}

}  // namespace wick
