// Splitters for the patterns of GPT-2, of cl100k / Llama 3, and of Qwen 2.
//
// Each tries the alternatives of its pattern in their order at every position. "Other" is a
// character that is no white space, letter or number: [^\s\p{L}\p{N}].
#include "wick/text/splitters.h"

#include <fmt/core.h>
#include <array>

#include <limits>
#include <string>

#include "wick/text/unicode.h"

namespace wick {

namespace {

using unicode::kLetter;
using unicode::kNumber;
using unicode::kSpace;

constexpr uint8_t kWord = kLetter | kNumber | kSpace;
constexpr uint8_t kNewline = 0x20;
constexpr uint8_t kEnd = 0x40;

constexpr std::array<uint8_t, 128> kAscii = [] {
  std::array<uint8_t, 128> table{};
  for (int c = 'a'; c <= 'z'; ++c) {
    table[c] = kLetter;
    table[c - 'a' + 'A'] = kLetter;
  }
  for (int c = '0'; c <= '9'; ++c) {
    table[c] = kNumber;
  }
  for (const int c : {'\t', '\v', '\f', ' '}) {
    table[c] = kSpace;
  }
  table['\n'] = table['\r'] = kSpace | kNewline;
  return table;
}();

// The classes of the characters of a text.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text), classes_(unicode::CharClasses::table()) {}

  struct Unit {
    uint8_t bits;  // kEnd behind the text
    uint32_t length;
    bool is(uint8_t mask) const { return (bits & mask) != 0; }
    bool is_other() const { return (bits & (kWord | kEnd)) == 0; }
  };

  Unit at(size_t i) const {
    if (i >= text_.size()) {
      return {kEnd, 0};
    }
    const auto byte = static_cast<uint8_t>(text_[i]);
    if (byte < 0x80) {
      return {kAscii[byte], 1};
    }
    const unicode::CodePoint c = unicode::decode_at(text_, i);
    return {static_cast<uint8_t>(classes_.of(c.value) & kWord), c.length};
  }

  // The end of the run of characters with a bit of `mask` that begins at i; at most `limit` of
  // them.
  size_t run(size_t i, uint8_t mask, size_t limit = std::numeric_limits<size_t>::max()) const {
    for (Unit unit = at(i); unit.is(mask) && limit > 0; unit = at(i), --limit) {
      i += unit.length;
    }
    return i;
  }

  size_t run_of_others(size_t i) const {
    for (Unit unit = at(i); unit.is_other(); unit = at(i)) {
      i += unit.length;
    }
    return i;
  }

  // \s+(?!\S)|\s+ at white space: a run leaves its last character to what follows it, unless it
  // is alone or ends the text.
  size_t spaces(size_t i) const {
    size_t last = i;
    size_t end = i;
    for (Unit unit = at(i); unit.is(kSpace); unit = at(end)) {
      last = end;
      end += unit.length;
    }
    return end == text_.size() || last == i ? end : last;
  }

  // \s*[\r\n]+ at white space, or i if there is no line end in the run.
  size_t line_end(size_t i) const {
    size_t found = i;
    for (Unit unit = at(i); unit.is(kSpace); unit = at(i)) {
      i += unit.length;
      if (unit.is(kNewline)) {
        found = i;
      }
    }
    return found;
  }

  char byte(size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

 private:
  std::string_view text_;
  const unicode::CharClasses& classes_;
};

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

// The end of 's|'t|'re|'ve|'m|'ll|'d at an apostrophe, or i.
template <bool kIgnoreCase>
size_t contraction(const Scanner& text, size_t i) {
  const auto byte = [&](size_t k) {
    return kIgnoreCase ? lower(text.byte(i + k)) : text.byte(i + k);
  };
  switch (byte(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return i + 2;
    case 'r':
    case 'v':
      return byte(2) == 'e' ? i + 3 : i;
    case 'l':
      return byte(2) == 'l' ? i + 3 : i;
    default:
      break;
  }
  // U+017F, the long s, folds to s.
  return kIgnoreCase && byte(1) == '\xC5' && byte(2) == '\xBF' ? i + 3 : i;
}

size_t gpt2_word(const Scanner& text, size_t i) {
  if (text.byte(i) == '\'') {
    if (const size_t end = contraction<false>(text, i); end > i) {
      return end;
    }
  }
  const size_t begin = text.byte(i) == ' ' ? i + 1 : i;
  const Scanner::Unit unit = text.at(begin);
  if (unit.is(kLetter)) {
    return text.run(begin, kLetter);
  }
  if (unit.is(kNumber)) {
    return text.run(begin, kNumber);
  }
  if (unit.is_other()) {
    return text.run_of_others(begin);
  }
  return text.spaces(i);
}

// cl100k (three digits a word) and Qwen 2 (one).
template <size_t kDigits>
size_t cl100k_word(const Scanner& text, size_t i) {
  const Scanner::Unit unit = text.at(i);
  if (text.byte(i) == '\'') {
    if (const size_t end = contraction<true>(text, i); end > i) {
      return end;
    }
  }
  // [^\r\n\p{L}\p{N}]?\p{L}+
  if (unit.is(kLetter)) {
    return text.run(i, kLetter);
  }
  if (unit.is(kNumber)) {
    return text.run(i, kNumber, kDigits);
  }
  if (!unit.is(kNewline) && text.at(i + unit.length).is(kLetter)) {
    return text.run(i + unit.length, kLetter);
  }
  // ?[^\s\p{L}\p{N}]+[\r\n]*
  const size_t begin = text.byte(i) == ' ' ? i + 1 : i;
  if (text.at(begin).is_other()) {
    return text.run(text.run_of_others(begin), kNewline);
  }
  const size_t line = text.line_end(i);
  return line > i ? line : text.spaces(i);
}

template <size_t (*kWordEnd)(const Scanner&, size_t)>
void split_all(std::string_view text, std::vector<Piece>& out) {
  const Scanner scanner(text);
  for (size_t i = 0; i < text.size();) {
    const size_t end = kWordEnd(scanner, i);
    out.push_back({text.substr(i, end - i), false});
    i = end;
  }
}

// Line ends may stand in the pattern as escapes or as themselves.
std::string escape_line_ends(std::string_view pattern) {
  std::string out;
  for (const char c : pattern) {
    out += c == '\r' ? "\\r" : c == '\n' ? "\\n" : std::string(1, c);
  }
  return out;
}

}  // namespace

Splitter find_splitter(std::string_view pattern) {
  constexpr std::string_view kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|";
  constexpr std::string_view kWords = R"([^\r\n\p{L}\p{N}]?\p{L}+|)";
  constexpr std::string_view kRest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string escaped = escape_line_ends(pattern);
  const auto is_cl100k = [&](std::string_view numbers) {
    return escaped == fmt::format("{}{}{}{}", kContractions, kWords, numbers, kRest);
  };
  if (is_cl100k(R"(\p{N})")) {
    return &split_all<&cl100k_word<1>>;
  }
  if (is_cl100k(R"(\p{N}{1,3})")) {
    return &split_all<&cl100k_word<3>>;
  }
  if (escaped == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") {
    return &split_all<&gpt2_word>;
  }
  return nullptr;
}

}  // namespace wick
