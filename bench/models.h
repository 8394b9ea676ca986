// Whole models with random weights in the shapes of public ones, so that nothing is downloaded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "wick/lora/attach.h"
#include "wick/models/decoder.h"

namespace wick::bench {

struct NamedShape {
  std::string name;
  ModelConfig config;
};

// Of Qwen2.5: 0.5B, 1.5B, 7B.
std::vector<NamedShape> model_shapes();

std::unique_ptr<Decoder> random_decoder(Backend& be, const ModelConfig& config, DType dtype);
// An adapter of that rank on all linear layers but the head.
AttachedAdapter attach_everywhere(Backend& be, Decoder& decoder, int64_t rank);
std::vector<int32_t> some_ids(int64_t count);

// Parameters of the head alone; tied to the embedding or not.
double head_parameters(const ModelConfig& config);
// Parameters that every token is multiplied with: all but the embedding's rows, the tied head
// included.
double product_parameters(const ModelConfig& config);
// Of attach_everywhere.
double adapter_parameters(const ModelConfig& config, int64_t rank);
// Of T causal tokens through all layers: two products of the heads' width a pair that is seen.
double attention_flops(const ModelConfig& config, int64_t T);

}  // namespace wick::bench
