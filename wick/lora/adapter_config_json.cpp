// `adapter_config.json` in and out.
#include <algorithm>
#include <array>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/lora/adapter_config.h"

namespace wick {

namespace {

// Keys keep their order: the first pattern that matches wins.
using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = size_t{4} << 20;
// The release of PEFT whose keys format_adapter_config writes.
constexpr const char* kPeftVersion = "0.21.2";

// Keys that change what the adapter computes unless they are absent, null, false or empty.
struct Refusal {
  std::string_view key;
  std::string_view meaning;
};
constexpr std::array kRefusals = {
    Refusal{"use_dora", "DoRA scales the rows of the weight"},
    Refusal{"use_qalora", "QA-LoRA pools the adapter's input"},
    Refusal{"use_bdlora", "BD-LoRA makes the factors block-diagonal"},
    Refusal{"lora_bias", "it adds a bias to B"},
    Refusal{"fan_in_fan_out", "the base's weights are stored transposed"},
    Refusal{"layer_replication", "it repeats layers of the base"},
    Refusal{"modules_to_save", "it replaces whole modules of the base"},
    Refusal{"trainable_token_indices", "it replaces rows of the embedding"},
    Refusal{"target_parameters", "it adapts bare parameters"},
    Refusal{"arrow_config", "it routes between several adapters"},
    Refusal{"kasa_config", "it adds singular values between A and B"},
    Refusal{"monteclora_config", "it samples the factors"},
    Refusal{"velora_config", "it changes the gradient"},
};
// Ways to initialise that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
// take something out of the base's weights.
constexpr std::array<std::string_view, 3> kHarmlessInits = {"gaussian", "eva", "orthogonal"};

bool is_set(const Json& value) {
  return !(value.is_null() || value == Json(false) ||
           ((value.is_structured() || value.is_string()) && value.empty()) || value == Json(""));
}

std::string shown(const Json& value) {
  return shown_json(nlohmann::json(value));
}

// One object of the file, with errors that name file, key and value.
class Reader {
 public:
  Reader(const Json& object, std::string_view name) : object_(object), name_(name) {}

  // Null counts as absent, as PEFT writes it so.
  const Json* find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  [[noreturn]] void wrong(const std::string& key, const Json& value, std::string_view want) const {
    fail("{}: {}: is {}, must be {}", name_, key, shown(value), want);
  }

  int64_t integer(const std::string& key, const Json& value) const {
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{1} << 40)) {
      wrong(key, value, "an integer");
    }
    return value.get<int64_t>();
  }
  double real(const std::string& key, const Json& value) const {
    if (!value.is_number()) {
      wrong(key, value, "a number");
    }
    return value.get<double>();
  }
  bool flag(const std::string& key) const {
    const Json* value = find(key);
    if (value != nullptr && !value->is_boolean()) {
      wrong(key, *value, "true or false");
    }
    return value != nullptr && value->get<bool>();
  }
  std::string text(const std::string& key, std::string otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return otherwise;
    }
    if (!value->is_string()) {
      wrong(key, *value, "a string");
    }
    return value->get<std::string>();
  }
  std::vector<std::string> texts(const std::string& key, const Json& value) const {
    std::vector<std::string> out;
    for (const Json& item : value) {
      if (!item.is_string() || item.get_ref<const std::string&>().empty()) {
        wrong(key, item, "a name, as all entries of the list");
      }
      out.push_back(item.get<std::string>());
    }
    return out;
  }
  template <class Value>
  std::vector<std::pair<std::string, Value>> pattern(
      const std::string& key, Value (Reader::*read)(const std::string&, const Json&) const) const {
    std::vector<std::pair<std::string, Value>> out;
    const Json* object = find(key);
    if (object == nullptr) {
      return out;
    }
    if (!object->is_object()) {
      wrong(key, *object, "an object of module patterns");
    }
    for (const auto& [module, value] : object->items()) {
      out.emplace_back(module, (this->*read)(fmt::format("{} of {}", key, module), value));
    }
    return out;
  }
  ModuleSelection selection(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return {};
    }
    if (value->is_array()) {
      return {ModuleSelection::Kind::names, texts(key, *value), {}};
    }
    if (!value->is_string()) {
      wrong(key, *value, "a list of module names or a regular expression");
    }
    std::string text = value->get<std::string>();
    std::string lower = text;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (lower == "all-linear" && key == "target_modules") {
      return ModuleSelection::all_linear();
    }
    if (text.empty()) {
      return {};
    }
    return {ModuleSelection::Kind::expression, {}, std::move(text)};
  }

  void refuse_what_is_not_implemented() const {
    constexpr std::string_view kWhat =
        "which wick does not implement; merge the adapter into its base with PEFT "
        "(merge_and_unload) and use the merged model, or train a plain LoRA";
    const std::string type = text("peft_type", "");
    check(type == "LORA", "{}: peft_type: is \"{}\", must be \"LORA\"", name_, type);
    for (const Refusal& refusal : kRefusals) {
      const Json* value = find(std::string(refusal.key));
      check(value == nullptr || !is_set(*value), "{}: {}: is {} ({}), {}", name_, refusal.key,
            value == nullptr ? "" : shown(*value), refusal.meaning, kWhat);
    }
    for (const auto& [key, value] : object_.items()) {
      check(!key.starts_with("alora_") || !is_set(value),
            "{}: {}: is {} (aLoRA acts from a certain token on), {}", name_, key, shown(value),
            kWhat);
    }
    const std::string bias = text("bias", "none");
    check(bias == "none", "{}: bias: is \"{}\" (biases of the base were trained), {}", name_, bias,
          kWhat);
    const Json* init = find("init_lora_weights");
    if (init != nullptr && !init->is_boolean()) {
      const std::string how = text("init_lora_weights", "");
      check(std::find(kHarmlessInits.begin(), kHarmlessInits.end(), how) != kHarmlessInits.end(),
            "{}: init_lora_weights: is \"{}\", which changes the base's weights, so the adapter is "
            "not valid on the base as it is; save it with PEFT's "
            "path_initial_model_for_weight_conversion to get a plain LoRA",
            name_, how);
    }
  }

  void read_layers(AdapterConfig& config) const {
    if (const Json* layers = find("layers_to_transform")) {
      if (!layers->is_array()) {
        config.layers_to_transform = {integer("layers_to_transform", *layers)};
      } else {
        for (const Json& layer : *layers) {
          config.layers_to_transform.push_back(integer("layers_to_transform", layer));
        }
      }
    }
    if (const Json* lists = find("layers_pattern"); lists != nullptr && is_set(*lists)) {
      config.layers_pattern = lists->is_array()
                                  ? texts("layers_pattern", *lists)
                                  : std::vector<std::string>{text("layers_pattern", "")};
      for (const std::string& list : config.layers_pattern) {
        // PEFT takes regular expressions here; in use these are names, and only those are read.
        check(std::all_of(list.begin(), list.end(),
                          [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; }),
              "{}: layers_pattern: \"{}\" is no plain name such as \"layers\"", name_, list);
      }
    }
  }

 private:
  const Json& object_;
  std::string_view name_;
};

Json to_json(const ModuleSelection& selection) {
  switch (selection.kind) {
    case ModuleSelection::Kind::all_linear:
      return "all-linear";
    case ModuleSelection::Kind::expression:
      return selection.expression;
    case ModuleSelection::Kind::names:
      break;
  }
  return selection.names;
}

template <class Value>
Json to_json(const std::vector<std::pair<std::string, Value>>& pattern) {
  Json object = Json::object();
  for (const auto& [key, value] : pattern) {
    object[key] = value;
  }
  return object;
}

// 16, not 16.0, as PEFT's int; other numbers stay as they are.
Json alpha_to_json(double alpha) {
  return alpha == static_cast<double>(static_cast<int64_t>(alpha))
             ? Json(static_cast<int64_t>(alpha))
             : Json(alpha);
}

template <class T>
Json null_if_empty(const T& list) {
  return list.empty() ? Json(nullptr) : Json(list);
}

}  // namespace

AdapterConfig parse_adapter_config(std::string_view json, std::string_view name) {
  parse_json_object(json, std::string(name));  // for its errors
  const Json object = Json::parse(json);
  const Reader reader(object, name);
  reader.refuse_what_is_not_implemented();

  AdapterConfig config;
  if (const Json* rank = reader.find("r")) {
    config.rank = reader.integer("r", *rank);
  }
  if (const Json* alpha = reader.find("lora_alpha")) {
    config.alpha = reader.real("lora_alpha", *alpha);
  }
  if (const Json* dropout = reader.find("lora_dropout")) {
    config.dropout = reader.real("lora_dropout", *dropout);
  }
  config.use_rslora = reader.flag("use_rslora");
  config.target_modules = reader.selection("target_modules");
  config.exclude_modules = reader.selection("exclude_modules");
  reader.read_layers(config);
  config.rank_pattern = reader.pattern("rank_pattern", &Reader::integer);
  config.alpha_pattern = reader.pattern("alpha_pattern", &Reader::real);
  config.base_model_name_or_path = reader.text("base_model_name_or_path", "");
  config.task_type = reader.text("task_type", "");
  // Compiles the patterns, so that a bad one is found here.
  [[maybe_unused]] const AdapterRules compiled(config, name);
  return config;
}

AdapterConfig read_adapter_config(const std::filesystem::path& adapter_config_json) {
  return parse_adapter_config(read_text(adapter_config_json, kMaxConfigBytes),
                              adapter_config_json.string());
}

std::string format_adapter_config(const AdapterConfig& config) {
  Json alphas = Json::object();
  for (const auto& [key, value] : config.alpha_pattern) {
    alphas[key] = alpha_to_json(value);
  }
  // In the order of the alphabet, as PEFT writes them; the patterns keep theirs.
  const Json object = {
      {"alora_invocation_tokens", nullptr},
      {"alpha_pattern", alphas},
      {"arrow_config", nullptr},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", null_if_empty(config.base_model_name_or_path)},
      {"bias", "none"},
      {"corda_config", nullptr},
      {"ensure_weight_tying", false},
      {"eva_config", nullptr},
      {"exclude_modules",
       config.exclude_modules.empty() ? Json(nullptr) : to_json(config.exclude_modules)},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"kasa_config", nullptr},
      {"layer_replication", nullptr},
      {"layers_pattern", null_if_empty(config.layers_pattern)},
      {"layers_to_transform", null_if_empty(config.layers_to_transform)},
      {"loftq_config", Json::object()},
      {"lora_alpha", alpha_to_json(config.alpha)},
      {"lora_bias", false},
      {"lora_dropout", config.dropout},
      {"lora_ga_config", nullptr},
      {"megatron_config", nullptr},
      {"megatron_core", "megatron.core"},
      {"modules_to_save", nullptr},
      {"monteclora_config", nullptr},
      {"peft_type", "LORA"},
      {"peft_version", kPeftVersion},
      {"qalora_group_size", 16},
      {"r", config.rank},
      {"rank_pattern", to_json(config.rank_pattern)},
      {"revision", nullptr},
      {"target_modules", to_json(config.target_modules)},
      {"target_parameters", nullptr},
      {"task_type", null_if_empty(config.task_type)},
      {"trainable_token_indices", nullptr},
      {"use_bdlora", nullptr},
      {"use_dora", false},
      {"use_qalora", false},
      {"use_rslora", config.use_rslora},
      {"velora_config", nullptr},
  };
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace wick
