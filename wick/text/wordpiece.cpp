// Greedy longest match, left to right.
#include "wick/text/wordpiece.h"

#include <algorithm>

#include "wick/base/error.h"
#include "wick/text/component.h"
#include "wick/text/unicode.h"
#include "wick/text/vocabulary.h"
#include "wick/text/word_cache.h"

namespace wick {

WordPiece::WordPiece(const Vocabulary& vocabulary, const Component& model)
    : vocabulary_(vocabulary),
      prefix_(model.string("continuing_subword_prefix", "##")),
      max_characters_(
          static_cast<size_t>(model.integer("max_input_chars_per_word", 1, 1 << 20, 100))) {
  const std::string unk = model.string("unk_token", "[UNK]");
  unk_id_ = vocabulary.find(unk);
  check(unk_id_ >= 0, "{}: the unk_token \"{}\" is not in the vocabulary", model.where(), unk);
}

void WordPiece::encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
  if (word.empty()) {
    return;
  }
  const uint64_t hash = hash_bytes(word);
  const std::span<const int32_t> known = cache.find(word, hash);
  if (known.data() != nullptr) {
    ids.insert(ids.end(), known.begin(), known.end());
    return;
  }
  const size_t first = ids.size();
  if (!cover(word, ids)) {
    ids.resize(first);
    ids.push_back(unk_id_);
  }
  cache.add(word, hash, std::span<const int32_t>(ids).subspan(first));
}

bool WordPiece::cover(std::string_view word, std::vector<int32_t>& ids) const {
  const auto characters = static_cast<size_t>(std::count_if(
      word.begin(), word.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
  if (characters > max_characters_) {
    return false;
  }
  std::string candidate;
  for (size_t begin = 0; begin < word.size();) {
    candidate.assign(begin > 0 ? prefix_ : "");
    const size_t prefix_size = candidate.size();
    candidate.append(word.substr(begin));
    int32_t id = vocabulary_.find(candidate);
    while (id < 0 && candidate.size() > prefix_size) {
      const unicode::CodePoint last = unicode::decode_before(candidate, candidate.size());
      candidate.resize(candidate.size() - last.length);
      id = candidate.size() > prefix_size ? vocabulary_.find(candidate) : Vocabulary::kNone;
    }
    if (id < 0) {
      return false;
    }
    ids.push_back(id);
    begin += candidate.size() - prefix_size;
  }
  return true;
}

}  // namespace wick
