// Byte-level BPE without merges.
#include "tests/support/byte_tokenizer.h"

#include <nlohmann/json.hpp>

#include "wick/base/file.h"

namespace wick::test {

namespace {

using Json = nlohmann::json;

// The printable character that stands for a byte in byte-level vocabularies (GPT-2's
// bytes_to_unicode), in UTF-8. All of them lie below U+0800.
std::string symbol_of(int byte) {
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) {
      code += printable(b) ? 0 : 1;
    }
  }
  if (code < 0x80) {
    return std::string(1, static_cast<char>(code));
  }
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

Json special(int32_t id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace

void write_byte_tokenizer(const std::filesystem::path& folder) {
  Json vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[symbol_of(byte)] = kFirstByteId + byte;
  }
  Json specials = Json::array();
  int32_t id = 0;
  for (const char* content : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    vocabulary[content] = id;
    specials.push_back(special(id++, content));
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", specials},
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
  write_text_atomically(folder / "tokenizer.json", tokenizer.dump());
  write_text_atomically(folder / "tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
}

}  // namespace wick::test
