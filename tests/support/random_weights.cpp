// Draws normal numbers by counter, so that it does not matter which thread draws them.
#include "tests/support/random_weights.h"

#include <algorithm>
#include <functional>
#include <span>

#include "wick/base/error.h"
#include "wick/base/parallel.h"
#include "wick/base/random.h"

namespace wick::test {
namespace {

constexpr float kDeviation = 0.02F;
constexpr int64_t kPiece = 1 << 16;  // values a task draws

std::map<std::string, Shape> shapes_of(const ModelConfig& c) {
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  std::map<std::string, Shape> shapes = {
      {"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}},
      {"model.norm.weight", {c.hidden_size}},
  };
  if (!c.tie_word_embeddings) {
    shapes["lm_head.weight"] = {c.vocab_size, c.hidden_size};
  }
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attention = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    shapes[layer + "input_layernorm.weight"] = {c.hidden_size};
    shapes[layer + "post_attention_layernorm.weight"] = {c.hidden_size};
    shapes[attention + "q_proj.weight"] = {q, c.hidden_size};
    shapes[attention + "q_proj.bias"] = {q};
    for (const char* name : {"k_proj", "v_proj"}) {
      shapes[attention + name + ".weight"] = {kv, c.hidden_size};
      shapes[attention + name + ".bias"] = {kv};
    }
    shapes[attention + "o_proj.weight"] = {c.hidden_size, q};
    shapes[mlp + "gate_proj.weight"] = {c.intermediate_size, c.hidden_size};
    shapes[mlp + "up_proj.weight"] = {c.intermediate_size, c.hidden_size};
    shapes[mlp + "down_proj.weight"] = {c.hidden_size, c.intermediate_size};
  }
  return shapes;
}

}  // namespace

RandomWeights::RandomWeights(const ModelConfig& config) {
  check(config.family == "qwen2", "random weights: of {}, not of qwen2", config.family);
  ThreadPool pool;
  uint64_t stream = 0;
  for (const auto& [name, shape] : shapes_of(config)) {
    const int64_t count = shape.elements();
    Values& values = tensors_[name];
    values.shape = shape;
    values.bits.assign(static_cast<size_t>(count), f32_to_bf16(1.0F));
    const Random random(1, ++stream);
    if (name.find("norm") != std::string::npos) {
      continue;
    }
    pool.run((count + kPiece - 1) / kPiece, [&](int64_t piece) {
      const int64_t end = std::min(count, (piece + 1) * kPiece);
      for (int64_t i = piece * kPiece; i < end; ++i) {
        values.bits[static_cast<size_t>(i)] =
            f32_to_bf16(kDeviation * random.normal(static_cast<uint64_t>(i)));
      }
    });
  }
}

std::vector<std::string> RandomWeights::names() const {
  std::vector<std::string> result;
  for (const auto& [name, values] : tensors_) {
    result.push_back(name);
  }
  return result;
}

WeightInfo RandomWeights::info(std::string_view name) const {
  return {tensors_.find(name)->second.shape, DType::bf16};
}

Tensor RandomWeights::read(Backend& backend, std::string_view name) const {
  const Values& values = tensors_.find(name)->second;
  Tensor tensor = backend.allocate(values.shape, DType::bf16);
  backend.upload(std::as_bytes(std::span(values.bits)), tensor);
  return tensor;
}

}  // namespace wick::test
