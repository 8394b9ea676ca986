// Special tokens as strings or objects, and the four places of a chat template.
#include "wick/text/tokenizer_config.h"

#include <nlohmann/json.hpp>

#include <array>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/text/component.h"
#include "wick/text/tokenizer_json.h"

namespace wick {

namespace {

using nlohmann::json;

std::optional<std::string> token_text(const Component& config, const char* key) {
  if (!config.has(key)) {
    return std::nullopt;
  }
  return config.raw(key).is_object() ? config.object(key).string("content") : config.string(key);
}

void read_special_tokens(const Component& file, TokenizerConfig& config) {
  static constexpr std::array kKeys = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};
  for (const char* key : kKeys) {
    if (const auto text = token_text(file, key)) {
      config.special_tokens.push_back(*text);
    }
  }
  if (!config.bos) {
    config.bos = token_text(file, "bos_token");
  }
  if (!config.eos) {
    config.eos = token_text(file, "eos_token");
  }
  if (file.has("additional_special_tokens") && file.raw("additional_special_tokens").is_array()) {
    for (const json& token : file.raw("additional_special_tokens")) {
      if (token.is_string()) {
        config.special_tokens.push_back(token.get<std::string>());
      } else {
        config.special_tokens.push_back(
            Component(token, file.where(), "additional_special_tokens").string("content"));
      }
    }
  }
}

// One template, or a list of {name, template} of which "default" is taken.
std::string template_text(const Component& file) {
  if (!file.has("chat_template")) {
    return {};
  }
  if (!file.raw("chat_template").is_array()) {
    return file.string("chat_template");
  }
  for (const Component& entry : file.objects("chat_template")) {
    if (entry.string("name") == "default") {
      return entry.string("template");
    }
  }
  return {};
}

// In these classes the flags decide over bos and eos, whatever the post-processor says.
bool flags_override(const std::string& tokenizer_class) {
  static constexpr std::array kClasses = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"};
  for (const std::string name : kClasses) {
    if (tokenizer_class == name || tokenizer_class == name + "Fast") {
      return true;
    }
  }
  return false;
}

}  // namespace

TokenizerConfig read_tokenizer_config(const std::filesystem::path& model_folder) {
  TokenizerConfig config;
  const auto path = model_folder / "tokenizer_config.json";
  config.path = path.string();
  if (std::filesystem::exists(path)) {
    const json root = read_json(path);
    const Component file(root, config.path);
    read_special_tokens(file, config);
    config.chat_template = template_text(file);
    if (flags_override(file.string("tokenizer_class", ""))) {
      const auto flag = [&](const char* key) {
        return file.has(key) ? std::optional(file.boolean(key, false)) : std::nullopt;
      };
      config.add_bos = flag("add_bos_token");
      config.add_eos = flag("add_eos_token");
    }
  }
  if (const auto map = model_folder / "special_tokens_map.json"; std::filesystem::exists(map)) {
    const json root = read_json(map);
    read_special_tokens(Component(root, map.string()), config);
  }
  // A file of its own is newer than the field.
  if (const auto jinja = model_folder / "chat_template.jinja"; std::filesystem::exists(jinja)) {
    config.chat_template = read_text(jinja, size_t{16} << 20);
  } else if (const auto file = model_folder / "chat_template.json";
             config.chat_template.empty() && std::filesystem::exists(file)) {
    const json root = read_json(file);
    config.chat_template = template_text(Component(root, file.string()));
  }
  return config;
}

}  // namespace wick
