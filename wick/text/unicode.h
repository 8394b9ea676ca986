// UTF-8 and the character classes that tokenizers speak of.
//
// Letter, number, space and word are Oniguruma's, the engine of the reference tokenizers, so that a
// hand-written splitter and a regular expression agree; the general categories are utf8proc's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace wick::unicode {

// One code point and the number of bytes it takes.
struct CodePoint {
  char32_t value;
  uint32_t length;
};

// Reads the code point at `offset` of valid UTF-8; offset < text.size().
inline CodePoint decode_at(std::string_view text, size_t offset) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[offset + i]); };
  const uint32_t first = byte(0);
  if (first < 0x80) {
    return {first, 1};
  }
  if (first < 0xE0) {
    return {(first & 0x1F) << 6 | (byte(1) & 0x3FU), 2};
  }
  if (first < 0xF0) {
    return {(first & 0x0F) << 12 | (byte(1) & 0x3FU) << 6 | (byte(2) & 0x3FU), 3};
  }
  return {
      (first & 0x07) << 18 | (byte(1) & 0x3FU) << 12 | (byte(2) & 0x3FU) << 6 | (byte(3) & 0x3FU),
      4};
}

// The code point that ends before `offset` of valid UTF-8; offset > 0.
CodePoint decode_before(std::string_view text, size_t offset);

void append_utf8(std::string& out, char32_t value);
std::u32string to_utf32(std::string_view text);

// What stands at `offset` of bytes that may be anything.
struct Sequence {
  enum class Kind { kCharacter, kIncomplete, kInvalid };
  Kind kind;
  // kCharacter: its bytes. kInvalid: the bytes that one U+FFFD replaces (the maximal subpart of the
  // Unicode standard, 3.9). kIncomplete: the bytes to the end, which more input could complete.
  uint32_t length;
};
Sequence classify(std::string_view bytes, size_t offset);

// Byte offset of the first error, or text.size().
size_t find_invalid_utf8(std::string_view text);
bool is_ascii(std::string_view text);

// Bits of `CharClasses::of`.
enum : uint8_t { kLetter = 1, kNumber = 2, kSpace = 4, kWord = 8 };

// The class bits of every code point, in two stages: pages of 256 code points, equal pages shared.
class CharClasses {
 public:
  // The one table, made at first use and constant from then on.
  static const CharClasses& table();

  uint8_t of(char32_t c) const { return pages_[page_of_[c >> 8] * 256U + (c & 0xFF)]; }

 private:
  CharClasses();
  std::vector<uint8_t> pages_;
  std::vector<uint16_t> page_of_;
};

bool is_space(char32_t c);
// Oniguruma's word characters and the two joiners, which Rust's \w (used outside Split) counts too.
bool is_word(char32_t c);
// General categories Nd, Nl, No.
bool is_numeric(char32_t c);
// The next three are as of Unicode 8, like the reference's.
// ASCII punctuation and symbols, and the categories P*.
bool is_punctuation(char32_t c);
bool is_nonspacing_mark(char32_t c);
// Categories Cc, Cf, Co.
bool is_control(char32_t c);
// Categories M*.
bool is_mark(char32_t c);

// Lower case of each code point by itself: no context (final sigma), U+0130 gives "i" + U+0307.
std::string to_lower(std::string_view text);

enum class Form { kNfc, kNfd, kNfkc, kNfkd };
// True if the text is surely in NFC already; false only means that it must be looked at closely.
bool is_surely_nfc(std::string_view text);
std::string normalize(std::string_view text, Form form);

}  // namespace wick::unicode
