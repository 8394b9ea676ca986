// A tokenizer small enough to check by hand: one token a byte.
#pragma once

#include <cstdint>
#include <filesystem>

namespace wick::test {

// Ids of the special tokens; the byte b has the id kFirstByteId + b.
inline constexpr int32_t kEosId = 0;        // <|endoftext|>
inline constexpr int32_t kTurnStartId = 1;  // <|im_start|>
inline constexpr int32_t kTurnEndId = 2;    // <|im_end|>
inline constexpr int32_t kFirstByteId = 3;
inline constexpr int32_t kByteVocabulary = 259;

// Writes tokenizer.json and tokenizer_config.json into the folder.
void write_byte_tokenizer(const std::filesystem::path& folder);

}  // namespace wick::test
