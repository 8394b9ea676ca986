// The pre-tokenizer of a tokenizer.json: text to words, which the model turns into ids one by one.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

class Component;

struct Piece {
  std::string_view text;
  // It begins where the whole input begins: Metaspace's "first" asks for it.
  bool at_start;
};

// Words, and the strings that own those that are not part of the input.
struct Pieces {
  std::vector<Piece> list;
  std::deque<std::string> owned;

  std::string_view own(std::string text) { return owned.emplace_back(std::move(text)); }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Appends the words of one piece to `out`. An empty word may be appended: it has no ids.
  virtual void apply(const Piece& piece, Pieces& out) const = 0;
};

// ByteLevel writes each byte as a printable character. Where it comes last and a BPE model follows,
// the words can stay as they are and the model reads their bytes instead (`kRaw`).
enum class LastByteLevel { kMapped, kRaw };
bool ends_with_byte_level(const Component& component);
std::unique_ptr<const PreTokenizer> parse_pretokenizer(const Component& component,
                                                       LastByteLevel last);

// The byte alphabet of GPT-2: printable Latin-1 stands for itself, the rest for U+0100 and on.
std::string to_byte_characters(std::string_view bytes);
// The byte that a character stands for, or -1.
int byte_of_character(char32_t c);

}  // namespace wick
