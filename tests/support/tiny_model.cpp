// Writes the files of a tiny model.
#include "tests/support/tiny_model.h"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "wick/base/file.h"
#include "wick/base/random.h"
#include "wick/io/safetensors.h"

namespace wick::test {

namespace {

using Json = nlohmann::json;

std::string utf8(uint32_t code_point) {
  if (code_point < 0x80) {
    return {static_cast<char>(code_point)};
  }
  return {static_cast<char>(0xC0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

// GPT-2's printable stand-in for a byte: itself where it prints, else the next unused character
// from U+0100 on.
std::vector<std::string> byte_characters() {
  std::vector<std::string> result;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    result.push_back(utf8(prints ? byte : next++));
  }
  return result;
}

Json tokenizer_json() {
  Json vocabulary = Json::object();
  int id = 0;
  for (const std::string& character : byte_characters()) {
    vocabulary[character] = id++;
  }
  Json added = Json::array();
  for (const char* token : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    added.push_back({{"id", id++},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", false},
                           {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocabulary},
            {"merges", Json::array()}}}};
}

const char* class_name(const std::string& family) {
  return family == "llama"     ? "LlamaForCausalLM"
         : family == "mistral" ? "MistralForCausalLM"
         : family == "qwen2"   ? "Qwen2ForCausalLM"
                               : "Qwen3ForCausalLM";
}

Json config_json(const TinyModelOptions& o) {
  Json json = {{"architectures", {class_name(o.family)}},
               {"model_type", o.family},
               {"vocab_size", o.vocab_size},
               {"hidden_size", o.hidden_size},
               {"intermediate_size", o.intermediate_size},
               {"num_hidden_layers", o.num_layers},
               {"num_attention_heads", o.num_heads},
               {"num_key_value_heads", o.num_kv_heads},
               {"head_dim", o.head_dim},
               {"max_position_embeddings", o.max_positions},
               {"hidden_act", "silu"},
               {"rms_norm_eps", 1e-6},
               {"rope_theta", 10000.0},
               {"tie_word_embeddings", o.tied},
               {"bos_token_id", nullptr},
               {"eos_token_id", kTinyEndOfText},
               {"torch_dtype", o.dtype == DType::f32    ? "float32"
                               : o.dtype == DType::bf16 ? "bfloat16"
                                                        : "float16"}};
  if (o.family == "mistral") {
    json["sliding_window"] = o.sliding_window > 0 ? Json(o.sliding_window) : Json(nullptr);
  }
  return json;
}

// Normal numbers times `deviation`, plus `mean`, rounded to the wanted type.
SafetensorsItem random_item(std::string name, const Shape& shape, const TinyModelOptions& o,
                            uint64_t stream, float mean, float deviation) {
  const Random random(o.seed, stream);
  const DType dtype = o.dtype;
  return {std::move(name), dtype, shape, [=](std::span<std::byte> to) {
            for (int64_t i = 0; i < shape.elements(); ++i) {
              const float value = mean + deviation * random.normal(static_cast<uint64_t>(i));
              const uint16_t half = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
              std::byte* at = to.data() + static_cast<size_t>(i) * size_of(dtype);
              std::memcpy(at, dtype == DType::f32 ? static_cast<const void*>(&value) : &half,
                          size_of(dtype));
            }
          }};
}

std::vector<SafetensorsItem> weights_of(const TinyModelOptions& o) {
  std::vector<SafetensorsItem> items;
  const auto add = [&](const std::string& name, const Shape& shape, float mean, float deviation) {
    items.push_back(random_item(name, shape, o, items.size() + 1, mean, deviation));
  };
  const auto norm = [&](const std::string& name, int64_t size) { add(name, {size}, 1.0F, 0.1F); };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    add(name + ".weight", {out, in}, 0.0F, 0.1F);
    if (bias) {
      add(name + ".bias", {out}, 0.0F, 0.1F);
    }
  };
  const int64_t hidden = o.hidden_size;
  const int64_t queries = int64_t{o.num_heads} * o.head_dim;
  const int64_t keys = int64_t{o.num_kv_heads} * o.head_dim;
  const bool bias = o.family == "qwen2";
  add("model.embed_tokens.weight", {o.vocab_size, hidden}, 0.0F, 0.5F);
  for (int layer = 0; layer < o.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    norm(prefix + "input_layernorm.weight", hidden);
    linear(prefix + "self_attn.q_proj", queries, hidden, bias);
    linear(prefix + "self_attn.k_proj", keys, hidden, bias);
    linear(prefix + "self_attn.v_proj", keys, hidden, bias);
    linear(prefix + "self_attn.o_proj", hidden, queries, false);
    if (o.family == "qwen3") {
      norm(prefix + "self_attn.q_norm.weight", o.head_dim);
      norm(prefix + "self_attn.k_norm.weight", o.head_dim);
    }
    norm(prefix + "post_attention_layernorm.weight", hidden);
    linear(prefix + "mlp.gate_proj", o.intermediate_size, hidden, false);
    linear(prefix + "mlp.up_proj", o.intermediate_size, hidden, false);
    linear(prefix + "mlp.down_proj", hidden, o.intermediate_size, false);
  }
  norm("model.norm.weight", hidden);
  if (!o.tied) {
    linear("lm_head", o.vocab_size, hidden, false);
  }
  return items;
}

void write_weights(const std::filesystem::path& folder, const TinyModelOptions& o) {
  std::vector<SafetensorsItem> items = weights_of(o);
  const SafetensorsMetadata metadata = {{"format", "pt"}};
  if (o.shards <= 1) {
    write_safetensors(folder / "model.safetensors", std::move(items), metadata);
    return;
  }
  Json map = Json::object();
  std::vector<std::vector<SafetensorsItem>> shards(static_cast<size_t>(o.shards));
  for (size_t i = 0; i < items.size(); ++i) {
    const size_t shard = i % shards.size();
    map[items[i].name] = "model-" + std::to_string(shard + 1) + ".safetensors";
    shards[shard].push_back(std::move(items[i]));
  }
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    write_safetensors(folder / ("model-" + std::to_string(shard + 1) + ".safetensors"),
                      std::move(shards[shard]), metadata);
  }
  write_text_atomically(folder / "model.safetensors.index.json",
                        Json{{"metadata", Json::object()}, {"weight_map", map}}.dump(2));
}

}  // namespace

std::filesystem::path write_tiny_model(const std::filesystem::path& folder,
                                       const TinyModelOptions& options) {
  std::filesystem::create_directories(folder);
  write_text_atomically(folder / "config.json", config_json(options).dump(2));
  write_text_atomically(folder / "tokenizer.json", tokenizer_json().dump(1));
  write_text_atomically(folder / "tokenizer_config.json",
                        Json{{"eos_token", "<|endoftext|>"},
                             {"bos_token", nullptr},
                             {"add_bos_token", false},
                             {"model_max_length", options.max_positions}}
                            .dump(2));
  if (options.weights) {
    write_weights(folder, options);
  }
  return folder;
}

std::filesystem::path write_tiny_model(const std::filesystem::path& folder,
                                       const std::string& family, uint64_t seed) {
  TinyModelOptions options;
  options.family = family;
  options.seed = seed;
  return write_tiny_model(folder, options);
}

std::string tiny_records() {
  std::string lines;
  for (const char* word : {"red", "green", "blue", "black", "white", "pink", "grey", "brown",
                           "violet", "orange", "teal", "gold", "silver"}) {
    lines += fmt::format("{{\"prompt\": \"{}:\", \"completion\": \" {}!\"}}\n", word, word);
  }
  return lines;
}

}  // namespace wick::test
