// WordPiece (Schuster and Nakajima, 2012) as BERT uses it: the longest token that fits, again and
// again; a word that cannot be covered is one unknown token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "wick/text/model.h"

namespace wick {

class Component;
class Vocabulary;

class WordPiece : public WordModel {
 public:
  // `vocabulary` must outlive this object.
  WordPiece(const Vocabulary& vocabulary, const Component& model);

  void encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const override;

 private:
  bool cover(std::string_view word, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  std::string prefix_;
  size_t max_characters_;
  int32_t unk_id_;
};

}  // namespace wick
