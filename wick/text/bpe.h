// Byte-pair encoding (Sennrich et al., 2016), over bytes or over characters.
//
// A word begins as one symbol a character (or byte); then the adjacent pair of the lowest rank, the
// leftmost of equals, is merged until no pair is in the table.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "wick/text/model.h"

namespace wick {

class Component;
class Vocabulary;
struct MergeList;

class Bpe : public WordModel {
 public:
  struct Options {
    // Words are raw bytes; the vocabulary writes them in the byte alphabet.
    bool raw_bytes = false;
    // A word that is in the vocabulary is that token, whatever the merges say.
    bool ignore_merges = false;
    // A character that is not in the vocabulary is written as tokens <0x00> to <0xFF>.
    bool byte_fallback = false;
    // Adjacent unknown characters give one unknown token.
    bool fuse_unk = false;
    std::string unk_token;  // empty: unknown characters are left out
    std::string continuing_prefix;
    std::string word_suffix;
  };

  // `vocabulary` must outlive this object. `where` names the file in errors.
  Bpe(const Vocabulary& vocabulary, const MergeList& merges, Options options,
      const std::string& where);

  void encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const override;

 private:
  // (left, right) -> (rank, merged), open addressing.
  struct Merge {
    int32_t left = -1;
    int32_t right = -1;
    uint32_t rank = 0;
    int32_t merged = -1;
  };
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
  };

  void build_merges(const MergeList& merges, const std::string& where);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void encode_uncached(std::string_view word, std::vector<int32_t>& ids) const;
  void split_symbols(std::string_view word, std::vector<int32_t>& ids) const;
  bool append_bytes(std::string_view character, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& ids, size_t begin) const;
  void merge_long(std::vector<int32_t>& ids, size_t begin) const;

  const Vocabulary& vocabulary_;
  Options options_;
  int32_t unk_id_ = -1;
  // Raw words: the id of each byte's symbol. Otherwise: of the token <0xXX>. -1: none.
  std::array<int32_t, 256> byte_ids_{};
  std::vector<Merge> merges_;
  // No merge joins something and a U+2581 after it, so a text can be cut before each U+2581 that
  // does not follow one, and the parts merged (and remembered) one by one.
  bool cuts_at_metaspace_ = false;
};

}  // namespace wick
