// Puts an adapter on the linear layers of a model, and takes it off.
//
// All factors lie in one flat f32 arena (and their gradients in another), so that an optimiser
// steps, clips and saves them in one call; each A and B of a layer's slot is a view. Views begin at
// multiples of 16 elements; the gaps are zero and stay so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "wick/core/backend.h"
#include "wick/lora/adapter.h"
#include "wick/nn/linear_layer.h"

namespace wick {

struct AttachedAdapter {
  struct Segment {
    std::string name;  // "model.layers.0.self_attn.q_proj.lora_A"
    int64_t begin = 0;
    Shape shape;
  };
  // As asked for, with the targets spelled out: see attach_new.
  AdapterConfig config;
  Tensor values;                  // f32 [n]; see keep_for_inference
  Tensor grads;                   // f32 [n], zero at first; empty if not trainable
  std::vector<Segment> segments;  // A and B of each layer in turn
  std::vector<LinearLayer*> layers;
  std::string base_hash;

  // The number of trained values, without the gaps.
  int64_t parameters() const;
  // What the arena holds now. Throws Error where the factors were rounded.
  Adapter to_adapter(Backend& backend) const;
  // Gives up training: no gradients, and the factors in the type that products with these layers
  // take (Backend::adapter_type), which is half the bytes to read for each token where that is
  // bf16.
  void keep_for_inference(Backend& backend);
  // Empties the slots of the layers.
  void detach();
};

enum class Trainable : uint8_t { no, yes };

// A fresh adapter: A is uniform within 1 / sqrt(in) (Kaiming, as PEFT), each layer from a stream
// named after it, so the same seed gives the same values whatever else is adapted; B is zero.
// Targets are resolved to names in the returned config. Errors: a target that matches no layer, or
// a selection that leaves none (naming what there is); a layer that has an adapter already.
AttachedAdapter attach_new(Backend& backend, std::span<LinearLayer* const> layers,
                           const AdapterConfig& config, uint64_t seed);

// An adapter that was read. Errors name the modules: those that the adapter has and the model has
// not, those that its config targets without factors, and those of other sizes. One that changes
// nothing is logged as a warning, unless it is to be trained on.
AttachedAdapter attach(Backend& backend, std::span<LinearLayer* const> layers,
                       const Adapter& adapter, Trainable trainable);

}  // namespace wick
