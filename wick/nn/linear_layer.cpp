// Hands a layer's weights to the op, with the dropout of this layer and step.
#include "wick/nn/linear_layer.h"

#include "wick/base/error.h"
#include "wick/ops/activation.h"
#include "wick/ops/lora_linear.h"

namespace wick {
namespace {

DropoutArgs dropout_of(const LoraSlot& lora, const StepContext& context) {
  if (!context.training || lora.dropout == 0.0F) {
    return {};
  }
  check(static_cast<bool>(context.step), "dropout: the number of the step is missing");
  return {.probability = lora.dropout,
          .seed = context.seed,
          .stream = lora.stream,
          .step = context.step};
}

}  // namespace

bool LinearLayer::trainable() const {
  return weight.trainable() || (bias && bias->trainable()) ||
         (lora && (lora->a.trainable() || lora->b.trainable()));
}

Var LinearLayer::forward(Backend& backend, Tape* tape, const Var& x,
                         const StepContext& context) const {
  const LinearLayer* const self = this;
  return forward_group(backend, tape, x, {&self, 1}, context).front();
}

namespace {

std::vector<LinearInputs> inputs_of(std::span<const LinearLayer* const> layers,
                                    const StepContext& context) {
  std::vector<LinearInputs> inputs;
  for (const LinearLayer* layer : layers) {
    LinearInputs& input = inputs.emplace_back(&layer->weight);
    input.bias = layer->bias ? &*layer->bias : nullptr;
    if (layer->lora) {
      const LoraSlot& lora = *layer->lora;
      input.lora.emplace(lora.a, lora.b, lora.scaling, dropout_of(lora, context));
    }
  }
  return inputs;
}

}  // namespace

std::vector<Var> forward_group(Backend& backend, Tape* tape, const Var& x,
                               std::span<const LinearLayer* const> layers,
                               const StepContext& context) {
  return linear_group(backend, tape, x, inputs_of(layers, context));
}

Var forward_gated(Backend& backend, Tape* tape, const Var& x,
                  std::span<const LinearLayer* const> g_and_u, Activation activation,
                  const StepContext& context) {
  const std::vector<LinearInputs> inputs = inputs_of(g_and_u, context);
  if (tape == nullptr) {
    return gated_group(backend, x, inputs, activation);
  }
  const std::vector<Var> both = linear_group(backend, tape, x, inputs);
  return gate(backend, tape, both[0], both[1], activation);
}

std::vector<Var> forward_normed_group(Backend& backend, const NormedInput& input,
                                      std::span<const LinearLayer* const> layers) {
  return normed_group(backend, input, inputs_of(layers, {}));
}

Var forward_normed_gated(Backend& backend, const NormedInput& input,
                         std::span<const LinearLayer* const> g_and_u, Activation activation) {
  return normed_gated_group(backend, input, inputs_of(g_and_u, {}), activation);
}

}  // namespace wick
