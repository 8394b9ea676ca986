// One name space over the weights of a model, wherever they lie: one safetensors file, a folder of
// shards, or memory.
//
// A source is opened once and checked whole: an index that names an absent shard, or a tensor that
// its shard does not hold, is an error then. Tensors keep their stored type. Names are those of the
// file (Hugging Face module paths). The files stay mapped as long as a loaded tensor needs them.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

struct WeightInfo {
  Shape shape;
  DType dtype = DType::f32;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Where the weights come from, for messages.
  virtual std::string description() const = 0;
  // In order.
  virtual std::vector<std::string> names() const = 0;
  virtual bool has(std::string_view name) const = 0;
  // Throws Error where there is no such tensor, or wick knows no such type.
  virtual WeightInfo info(std::string_view name) const = 0;
  // Throws Error naming source, tensor and both shapes where it is missing or shaped otherwise, or
  // is no floating-point tensor.
  Tensor load(Backend& backend, std::string_view name, const Shape& expected) const;

 private:
  // Of a tensor that has passed the checks.
  virtual Tensor read(Backend& backend, std::string_view name) const = 0;
};

// A model folder's `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
// Where its config.json says that MLX has quantised them, they are dequantised (mlx_quantized.h).
std::unique_ptr<WeightSource> open_weights(const std::filesystem::path& folder);
// Whether the folder has either.
bool has_weights(const std::filesystem::path& folder);

// Weights that are tensors already.
class MemoryWeights : public WeightSource {
 public:
  void put(std::string name, Tensor tensor);

  std::string description() const override { return "weights in memory"; }
  std::vector<std::string> names() const override;
  bool has(std::string_view name) const override { return tensors_.contains(name); }
  WeightInfo info(std::string_view name) const override;

 private:
  Tensor read(Backend& backend, std::string_view name) const override;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace wick
