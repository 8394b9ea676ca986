// A linear layer under its Hugging Face name, with a slot for a LoRA adapter.
//
// y = x W^T (+ bias) (+ scaling * dropout(x) A^T B^T). The layer owns handles, not memory: whoever
// trains a parameter points its `value` and `grad` into an arena.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "wick/autograd/tape.h"

namespace wick {

// What a forward pass needs to know beyond its input. Dropout is a function of (seed, layer,
// step), so `step` must count micro-batches: no two forward passes of a run share one.
struct StepContext {
  bool training = false;  // dropout is on
  uint64_t seed = 0;
  Tensor step;  // i32 [1]; may be empty where there is no dropout
};

struct LoraSlot {
  Parameter a;  // [r, in], f32
  Parameter b;  // [out, r], f32
  float scaling = 1.0F;
  float dropout = 0.0F;  // in [0, 1), on the adapter's input
  uint64_t stream = 0;   // of random numbers, one a layer

  int64_t rank() const { return a.value.dim(0); }
};

struct LinearLayer {
  std::string name;               // "model.layers.0.self_attn.q_proj"
  Parameter weight;               // [out, in]; name "<layer>.weight"
  std::optional<Parameter> bias;  // [out]; name "<layer>.bias"
  std::optional<LoraSlot> lora;

  int64_t in_features() const { return weight.value.dim(1); }
  int64_t out_features() const { return weight.value.dim(0); }
  bool trainable() const;

  // x [T, in] to [T, out].
  Var forward(Backend& backend, Tape* tape, const Var& x, const StepContext& context) const;
};

// Several layers that read the same x: one output a layer.
std::vector<Var> forward_group(Backend& backend, Tape* tape, const Var& x,
                               std::span<const LinearLayer* const> layers,
                               const StepContext& context);

// act(g) * u of two such layers, [T, F].
Var forward_gated(Backend& backend, Tape* tape, const Var& x,
                  std::span<const LinearLayer* const> g_and_u, Activation activation,
                  const StepContext& context);

// Both of them without a tape or dropout, of a norm that a back end may fuse with them.
std::vector<Var> forward_normed_group(Backend& backend, const NormedInput& input,
                                      std::span<const LinearLayer* const> layers);
Var forward_normed_gated(Backend& backend, const NormedInput& input,
                         std::span<const LinearLayer* const> g_and_u, Activation activation);

}  // namespace wick
