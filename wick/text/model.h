// The model of a tokenizer.json: a word to ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace wick {

class WordCache;

class WordModel {
 public:
  virtual ~WordModel() = default;
  // Appends the ids of one word. `cache` is for the caller's thread alone, and for this model only.
  virtual void encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const = 0;
};

}  // namespace wick
