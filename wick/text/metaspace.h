// Metaspace: spaces written as U+2581, as in SentencePiece; as pre-tokenizer and as decoder.
#pragma once

#include <string>
#include <string_view>

#include "wick/text/pretokenizer.h"

namespace wick {

struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement;  // one character
  Prepend prepend;
  bool split;
};

// Reads both forms: `prepend_scheme` and `split`, and the older `add_prefix_space`.
Metaspace parse_metaspace(const Component& component);

class MetaspaceSplit : public PreTokenizer {
 public:
  explicit MetaspaceSplit(Metaspace options) : options_(std::move(options)) {}
  void apply(const Piece& piece, Pieces& out) const override;

 private:
  Metaspace options_;
};

}  // namespace wick
