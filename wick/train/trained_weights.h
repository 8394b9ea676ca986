// What a run trains: a LoRA adapter, or all weights of the model. Either way it lies in one arena.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "wick/lora/adapter_config.h"
#include "wick/models/bundle.h"
#include "wick/train/optimizer.h"

namespace wick {

class TrainedWeights {
 public:
  virtual ~TrainedWeights() = default;
  // Flat, f32, of one length.
  virtual const Tensor& values() const = 0;
  virtual const Tensor& gradients() const = 0;
  // The runs of the arena; matrices decay by `weight_decay`, vectors do not.
  virtual std::vector<ParameterGroup> groups(float weight_decay) const = 0;
  // "LoRA: rank 16, alpha 32 (scaling 2), ..."
  virtual std::string describe() const = 0;
  // Of these weights; the arena may be longer.
  virtual int64_t parameters() const = 0;
  // Writes the result, each file whole.
  virtual void save(const std::filesystem::path& folder) const = 0;
};

// Attaches a new adapter (A random by `seed`, B zero) to the bundle's decoder.
std::unique_ptr<TrainedWeights> train_adapter(Bundle& bundle, const AdapterConfig& config,
                                              uint64_t seed);
// Widens all weights of the bundle's decoder to f32; they are saved as `saved_dtype`.
std::unique_ptr<TrainedWeights> train_all_weights(Bundle& bundle, DType saved_dtype);

}  // namespace wick
