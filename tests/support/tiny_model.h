// Small random model folders as Hugging Face would write them: config.json, model.safetensors, and
// a byte-level tokenizer.json with ChatML's special tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "wick/core/dtype.h"

namespace wick::test {

// One token a byte (ids 0 to 255, in the order of the bytes), then these.
inline constexpr int kTinyEndOfText = 256;  // <|endoftext|>: the end of text
inline constexpr int kTinyTurnBegin = 257;  // <|im_start|>
inline constexpr int kTinyTurnEnd = 258;    // <|im_end|>
inline constexpr int kTinyVocabulary = 259;

struct TinyModelOptions {
  std::string family = "llama";  // llama, mistral, qwen2, qwen3
  uint64_t seed = 1;
  DType dtype = DType::f32;
  bool tied = false;
  bool weights = true;  // false: a folder to train from scratch in
  int shards = 1;       // over 1: with an index
  int vocab_size = kTinyVocabulary;
  int hidden_size = 32;
  int intermediate_size = 48;
  int num_layers = 2;
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 8;
  int max_positions = 128;
  int sliding_window = 0;  // mistral; 0 writes null
};

// Makes the folder if need be and returns it.
std::filesystem::path write_tiny_model(const std::filesystem::path& folder,
                                       const TinyModelOptions& options);
std::filesystem::path write_tiny_model(const std::filesystem::path& folder,
                                       const std::string& family, uint64_t seed);

// Thirteen short prompts with their completions, one JSON record a line.
std::string tiny_records();

}  // namespace wick::test
