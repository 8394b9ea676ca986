// The table of families, and the reader of config.json.
#include "wick/models/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/io/mlx_quantized.h"

namespace wick {

namespace {

using Json = nlohmann::json;

enum class WindowRule : uint8_t {
  none,
  every_layer,   // "sliding_window" holds everywhere; null switches it off
  upper_layers,  // if "use_sliding_window", from layer "max_window_layers" on, or by "layer_types"
};

// What a key means where config.json does not have it, and what is built in; source: the
// configuration classes of transformers.
struct Family {
  std::string_view name;
  bool qkv_bias;            // always there
  bool attention_bias_key;  // "attention_bias" adds biases to q, k, v and o
  bool mlp_bias_key;        // "mlp_bias" is honoured
  bool qk_norm;
  WindowRule window;
  int64_t num_kv_heads;  // 0: as many as heads
  int64_t head_dim;      // 0: hidden_size / num_attention_heads
  int64_t max_positions;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
};

constexpr std::array kFamilies{
    Family{"llama", false, true, true, false, WindowRule::none, 0, 0, 2048, 1, 2},
    Family{"mistral", false, false, false, false, WindowRule::every_layer, 8, 0, 131072, 1, 2},
    Family{"qwen2", true, false, false, false, WindowRule::upper_layers, 32, 0, 32768, {}, {}},
    Family{"qwen3", false, true, false, true, WindowRule::upper_layers, 32, 128, 32768, {}, {}},
};

// Bounds that keep every product of shapes, and every size in bytes, far below 2^63.
constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// One JSON object of the file, and where it is: all checks of single values.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  // Present, be it null.
  bool has(const char* key) const { return object_.contains(key); }

  int64_t required_integer(const char* key, int64_t low, int64_t high) const {
    check(find(key) != nullptr, "{}: \"{}\" is missing", where_, key);
    return integer(key, low, low, high);
  }
  int64_t integer(const char* key, int64_t fallback, int64_t low, int64_t high) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : to_integer(*value, key, low, high);
  }
  int64_t to_integer(const Json& value, const char* key, int64_t low, int64_t high) const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    check(fits && value.get<int64_t>() >= low && value.get<int64_t>() <= high,
          "{}: \"{}\" is {}, not a whole number from {} to {}", where_, key, shown_json(value), low,
          high);
    return value.get<int64_t>();
  }
  double number(const char* key, double fallback, double low, double high) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return fallback;
    }
    const double result =
        value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
    check(result >= low && result <= high, "{}: \"{}\" is {}, not a number from {} to {}", where_,
          key, shown_json(*value), low, high);
    return result;
  }
  double required_number(const char* key, double low, double high) const {
    check(find(key) != nullptr, "{}: \"{}\" is missing", where_, key);
    return number(key, low, low, high);
  }
  bool boolean(const char* key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return fallback;
    }
    check(value->is_boolean(), "{}: \"{}\" is {}, not true or false", where_, key,
          shown_json(*value));
    return value->get<bool>();
  }
  std::optional<std::string> text(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return std::nullopt;
    }
    check(value->is_string(), "{}: \"{}\" is {}, not a string", where_, key, shown_json(*value));
    return value->get<std::string>();
  }

 private:
  const Json& object_;
  std::string where_;
};

const Family& family_of(const Reader& config) {
  std::string known;
  for (const Family& family : kFamilies) {
    known += (known.empty() ? "" : ", ") + std::string(family.name);
  }
  const std::optional<std::string> type = config.text("model_type");
  check(type.has_value(), "{}: \"model_type\" is missing; wick knows {}", config.where(), known);
  for (const Family& family : kFamilies) {
    if (family.name == *type) {
      return family;
    }
  }
  fail("{}: unknown model family {}; wick knows {}", config.where(), shown_json(Json(*type)),
       known);
}

void check_supported(const Reader& config, const Family& family) {
  const std::string activation = config.text("hidden_act").value_or("silu");
  check(activation == "silu" || activation == "swish",
        "{}: \"hidden_act\" is {}; wick knows silu for family {}", config.where(),
        shown_json(Json(activation)), family.name);
  if (!family.attention_bias_key && !family.qkv_bias) {
    check(!config.boolean("attention_bias", false),
          "{}: \"attention_bias\" is true, which family {} does not have", config.where(),
          family.name);
  }
  if (!family.mlp_bias_key) {
    check(!config.boolean("mlp_bias", false),
          "{}: \"mlp_bias\" is true, which family {} does not have", config.where(), family.name);
  }
}

void read_sizes(const Reader& config, const Family& family, ModelConfig& out) {
  out.vocab_size = config.required_integer("vocab_size", 1, kMaxVocabulary);
  out.hidden_size = config.required_integer("hidden_size", 1, kMaxWidth);
  out.intermediate_size = config.required_integer("intermediate_size", 1, kMaxWidth);
  out.num_layers = config.required_integer("num_hidden_layers", 1, kMaxLayers);
  out.num_heads = config.required_integer("num_attention_heads", 1, kMaxHeads);
  // An absent key means the family's default, null means one per head.
  const bool grouped = family.num_kv_heads != 0 && !config.has("num_key_value_heads");
  out.num_kv_heads = config.integer("num_key_value_heads",
                                    grouped ? family.num_kv_heads : out.num_heads, 1, kMaxHeads);
  check(out.num_heads % out.num_kv_heads == 0,
        "{}: \"num_attention_heads\" {} is not a multiple of \"num_key_value_heads\" {}",
        config.where(), out.num_heads, out.num_kv_heads);
  out.head_dim = config.integer("head_dim", family.head_dim, 1, kMaxHeadDim);
  if (out.head_dim == 0) {
    check(out.hidden_size % out.num_heads == 0,
          "{}: \"hidden_size\" {} is not a multiple of \"num_attention_heads\" {}", config.where(),
          out.hidden_size, out.num_heads);
    out.head_dim = out.hidden_size / out.num_heads;
  }
  check(out.head_dim % 2 == 0 && out.head_dim <= kMaxHeadDim,
        "{}: a head size of {} is not an even number up to {}", config.where(), out.head_dim,
        kMaxHeadDim);
  out.max_positions =
      config.integer("max_position_embeddings", family.max_positions, 1, kMaxPositions);
  out.rms_norm_eps = static_cast<float>(config.number("rms_norm_eps", 1e-6, 1e-12, 1.0));
}

void read_window(const Reader& config, const Family& family, ModelConfig& out) {
  if (family.window == WindowRule::none) {
    return;
  }
  const int64_t window =
      config.has("sliding_window") ? config.integer("sliding_window", 0, 0, kMaxPositions) : 4096;
  if (family.window == WindowRule::every_layer) {
    out.sliding_window = window;
    return;
  }
  if (!config.boolean("use_sliding_window", false) || window == 0) {
    return;
  }
  std::vector<bool> layers(static_cast<size_t>(out.num_layers));
  if (const Json* types = config.find("layer_types")) {
    check(types->is_array() && types->size() == layers.size(),
          "{}: \"layer_types\" is not an array of {} entries, one a layer", config.where(),
          layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
      const Json& type = (*types)[i];
      check(type == "sliding_attention" || type == "full_attention",
            "{}: \"layer_types\" entry {} is {}; wick knows full_attention and sliding_attention",
            config.where(), i, shown_json(type));
      layers[i] = type == "sliding_attention";
    }
  } else {
    const int64_t first = config.integer("max_window_layers", 28, 0, kMaxLayers);
    for (size_t i = 0; i < layers.size(); ++i) {
      layers[i] = static_cast<int64_t>(i) >= first;
    }
  }
  if (std::find(layers.begin(), layers.end(), true) != layers.end()) {
    out.sliding_window = window;
    out.windowed_layers = std::move(layers);
  }
}

RopeScaling read_rope_scaling(const Reader& rope) {
  RopeScaling out;
  const std::string type = rope.text("rope_type").value_or(rope.text("type").value_or("default"));
  if (type == "default") {
    return out;
  }
  check(type == "linear" || type == "llama3",
        "{}: rope type {} is not supported; wick knows default, linear and llama3", rope.where(),
        shown_json(Json(type)));
  out.factor = rope.required_number("factor", 1e-3, 1e6);
  if (type == "linear") {
    out.kind = RopeScaling::Kind::linear;
    return out;
  }
  out.kind = RopeScaling::Kind::llama3;
  out.low_freq_factor = rope.required_number("low_freq_factor", 1e-3, 1e6);
  out.high_freq_factor = rope.required_number("high_freq_factor", 1e-3, 1e6);
  check(out.low_freq_factor < out.high_freq_factor,
        "{}: \"low_freq_factor\" {} is not below \"high_freq_factor\" {}", rope.where(),
        out.low_freq_factor, out.high_freq_factor);
  out.original_positions =
      rope.required_integer("original_max_position_embeddings", 1, kMaxPositions);
  return out;
}

// "rope_theta" and "rope_scaling", or, from transformers 5 on, both in "rope_parameters".
void read_rope(const Reader& config, ModelConfig& out) {
  const auto theta = [&](const Reader& from) {
    out.rope_theta = from.number("rope_theta", out.rope_theta, 1.0, 1e12);
    check(from.number("partial_rotary_factor", 1.0, 0.0, 1.0) == 1.0,
          "{}: \"partial_rotary_factor\" is not 1; wick rotates whole heads only", from.where());
  };
  theta(config);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* object = config.find(key);
    if (object == nullptr) {
      continue;
    }
    check(object->is_object(), "{}: \"{}\" is {}, not an object", config.where(), key,
          shown_json(*object));
    const Reader rope(*object, config.where() + ": " + key);
    theta(rope);
    out.rope_scaling = read_rope_scaling(rope);
  }
}

void read_dtype(const Reader& config, ModelConfig& out) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::optional<std::string> type = config.text(key);
    if (!type.has_value()) {
      continue;
    }
    check(*type == "float32" || *type == "bfloat16" || *type == "float16",
          "{}: \"{}\" is {}; wick knows float32, bfloat16 and float16", config.where(), key,
          shown_json(Json(*type)));
    out.dtype = *type == "float32" ? DType::f32 : *type == "bfloat16" ? DType::bf16 : DType::f16;
  }
}

// Adds the ids of "eos_token_id", a number or an array; an id outside the vocabulary never comes,
// but a negative one is nonsense.
void add_eos_ids(const Reader& config, ModelConfig& out) {
  const Json* value = config.find("eos_token_id");
  if (value == nullptr) {
    return;
  }
  constexpr size_t kMaxIds = 1024;
  const auto add = [&](const Json& id) {
    const auto checked =
        static_cast<int32_t>(config.to_integer(id, "eos_token_id", 0, kMaxVocabulary));
    if (std::find(out.eos_ids.begin(), out.eos_ids.end(), checked) == out.eos_ids.end()) {
      out.eos_ids.push_back(checked);
    }
  };
  if (!value->is_array()) {
    add(*value);
    return;
  }
  check(value->size() <= kMaxIds, "{}: \"eos_token_id\" has {} entries, at most {} are read",
        config.where(), value->size(), kMaxIds);
  std::for_each(value->begin(), value->end(), add);
}

void read_special_ids(const Reader& config, const Family& family, ModelConfig& out) {
  if (config.has("bos_token_id")) {
    if (config.find("bos_token_id") != nullptr) {
      out.bos_id = static_cast<int32_t>(config.required_integer("bos_token_id", 0, kMaxVocabulary));
    }
  } else {
    out.bos_id = family.bos;
  }
  if (config.has("eos_token_id")) {
    add_eos_ids(config, out);
  } else if (family.eos.has_value()) {
    out.eos_ids.push_back(*family.eos);
  }
}

}  // namespace

ModelConfig parse_model_config_text(std::string_view text, std::string_view name) {
  const Json json = parse_json_object(text, std::string(name));
  const Reader config(json, std::string(name));
  const Family& family = family_of(config);
  check_supported(config, family);
  read_mlx_quantization(json, config.where());  // refuses what weight sources cannot read
  ModelConfig out;
  out.family = family.name;
  read_sizes(config, family, out);
  read_window(config, family, out);
  read_rope(config, out);
  read_dtype(config, out);
  read_special_ids(config, family, out);
  const bool attention_bias = family.attention_bias_key && config.boolean("attention_bias", false);
  out.qkv_bias = family.qkv_bias || attention_bias;
  out.output_bias = attention_bias;
  out.mlp_bias = family.mlp_bias_key && config.boolean("mlp_bias", false);
  out.qk_norm = family.qk_norm;
  out.tie_word_embeddings = config.boolean("tie_word_embeddings", false);
  return out;
}

ModelConfig parse_model_config(const std::filesystem::path& config_json) {
  ModelConfig out =
      parse_model_config_text(read_text(config_json, size_t{16} << 20), config_json.string());
  const std::filesystem::path generation = config_json.parent_path() / "generation_config.json";
  if (std::filesystem::exists(generation)) {
    const Json json = read_json_object(generation);
    add_eos_ids(Reader(json, generation.string()), out);
  }
  return out;
}

}  // namespace wick
