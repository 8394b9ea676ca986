// The weights of a model that nobody has trained: matrices and biases normal with deviation 0.02,
// norms 1, all of them numbers of bf16.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "wick/io/weight_source.h"
#include "wick/models/model_config.h"

namespace wick::test {

// Drawn once, by all cores, and kept in host memory. Each tensor has a stream named after it.
class RandomWeights : public WeightSource {
 public:
  // Of a qwen2 model: those are the names that it has.
  explicit RandomWeights(const ModelConfig& config);

  std::string description() const override { return "random weights"; }
  std::vector<std::string> names() const override;
  bool has(std::string_view name) const override { return tensors_.contains(name); }
  WeightInfo info(std::string_view name) const override;

 private:
  struct Values {
    Shape shape;
    std::vector<uint16_t> bits;
  };
  Tensor read(Backend& backend, std::string_view name) const override;

  std::map<std::string, Values, std::less<>> tensors_;
};

}  // namespace wick::test
