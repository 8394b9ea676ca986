// What lies beside a tokenizer.json: tokenizer_config.json, special_tokens_map.json and the files
// that hold a chat template.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace wick {

struct TokenizerConfig {
  std::string path;  // of tokenizer_config.json, for errors
  std::optional<std::string> bos;
  std::optional<std::string> eos;
  // Every string that is named as a special token, bos and eos included.
  std::vector<std::string> special_tokens;
  // Set only for the tokenizer classes in which they override the post-processor (Llama, Gemma).
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::string chat_template;
};

// A file that is absent leaves its fields empty.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& model_folder);

}  // namespace wick
