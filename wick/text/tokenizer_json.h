// Reads the file tokenizer.json: the large tables straight into place, the rest as JSON.
//
// The file is hostile until read: errors name it and the byte offset and line, or the field.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wick/text/vocabulary.h"

namespace wick {

// The merges of a BPE model, in order of rank.
struct MergeList {
  struct Entry {
    uint64_t offset;
    uint32_t left_length;
    uint32_t right_length;
  };
  std::string pool;
  std::vector<Entry> entries;

  size_t size() const { return entries.size(); }
  std::pair<std::string_view, std::string_view> pair(size_t rank) const {
    const Entry& entry = entries[rank];
    const std::string_view text(pool);
    return {text.substr(entry.offset, entry.left_length),
            text.substr(entry.offset + entry.left_length, entry.right_length)};
  }
};

struct TokenizerJson {
  std::string path;
  nlohmann::json root;  // without model.vocab and model.merges
  Vocabulary vocabulary;
  MergeList merges;
  bool has_merges = false;
  // A list of [piece, score] as Unigram models have it; not read.
  bool vocab_is_list = false;
};

TokenizerJson read_tokenizer_json(const std::filesystem::path& path);
// The same from text; `name` stands for the path in errors.
TokenizerJson parse_tokenizer_json(std::string_view text, std::string name);

// A small JSON file as a whole; errors name the path, the byte offset and the line.
nlohmann::json read_json(const std::filesystem::path& path);

}  // namespace wick
