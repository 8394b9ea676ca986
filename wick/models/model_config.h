// What a model is: the numbers and flags of a Hugging Face `config.json`, checked.
//
// All that tells one family from another (llama, mistral, qwen2, qwen3) stands in one table in
// model_config.cpp; a decoder reads only this structure. Every number is in a range that no product
// of shapes can overflow.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/dtype.h"

namespace wick {

// How rotary frequencies are stretched for contexts longer than those of pre-training.
struct RopeScaling {
  enum class Kind : uint8_t { none, linear, llama3 };
  Kind kind = Kind::none;
  double factor = 1.0;             // linear, llama3
  double low_freq_factor = 1.0;    // llama3, as the three below
  double high_freq_factor = 4.0;   // > low_freq_factor
  int64_t original_positions = 0;  // context length of pre-training
};

struct ModelConfig {
  std::string family;  // "llama", "mistral", "qwen2", "qwen3"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;      // even; num_heads * head_dim may differ from hidden_size
  int64_t max_positions = 0;
  float rms_norm_eps = 1e-6F;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;              // q_proj, k_proj and v_proj have biases
  bool output_bias = false;           // o_proj has one
  bool mlp_bias = false;              // gate_proj, up_proj and down_proj have them
  bool qk_norm = false;               // an RMS norm over each head of q and k, before the rotation
  int64_t sliding_window = 0;         // a token sees itself and window - 1 before it; 0: all
  std::vector<bool> windowed_layers;  // the layers that the window holds for; empty: all
  DType dtype = DType::f32;           // that the config states; the file's own types rule
  std::vector<int32_t> eos_ids;       // of config.json and generation_config.json
  std::optional<int32_t> bos_id;

  // Of one layer, 0: none.
  int64_t window(int64_t layer) const {
    return windowed_layers.empty() || windowed_layers[static_cast<size_t>(layer)] ? sliding_window
                                                                                  : 0;
  }
};

// Reads `config.json`, and the end-of-text ids of a `generation_config.json` beside it. Errors name
// the file, the key, and the value.
ModelConfig parse_model_config(const std::filesystem::path& config_json);
// The same from text, without a file beside it; `name` is for messages.
ModelConfig parse_model_config_text(std::string_view json, std::string_view name);

}  // namespace wick
