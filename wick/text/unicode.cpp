// UTF-8, character classes and normal forms, from Oniguruma's and utf8proc's tables.
#include "wick/text/unicode.h"

#include <oniguruma.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "wick/base/error.h"

namespace wick::unicode {

namespace {

constexpr size_t kCodePoints = 0x110000;
constexpr size_t kPageSize = 256;

void mark_class(std::vector<uint8_t>& flat, const char* name, uint8_t bit) {
  std::string copy(name);  // the C signature lacks the const
  auto* begin = reinterpret_cast<OnigUChar*>(copy.data());
  const int ctype = ONIGENC_PROPERTY_NAME_TO_CTYPE(ONIG_ENCODING_UTF8, begin, begin + copy.size());
  OnigCodePoint first_multibyte = 0;
  const OnigCodePoint* ranges = nullptr;
  const int code = ctype < 0 ? ctype
                             : ONIG_ENCODING_UTF8->get_ctype_code_range(
                                   static_cast<OnigCtype>(ctype), &first_multibyte, &ranges);
  check(code == 0 && ranges != nullptr, "Oniguruma: the character class {} is not there", name);
  // ranges = count, then (first, last) pairs.
  for (OnigCodePoint i = 0; i < ranges[0]; ++i) {
    const size_t last = std::min<size_t>(ranges[2 + 2 * i], kCodePoints - 1);
    for (size_t c = ranges[1 + 2 * i]; c <= last; ++c) {
      flat[c] |= bit;
    }
  }
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// The reference's tables of punctuation, nonspacing marks and controls are those of Unicode 8. In
// these ranges every such character is younger.
constexpr std::array<std::pair<char32_t, char32_t>, 41> kAfterUnicode8 = {
    {{0x61D, 0x61D},     {0x7FD, 0x7FD},     {0x890, 0x8E2},     {0x9FD, 0x9FE},
     {0xA76, 0xA76},     {0xAFA, 0xAFF},     {0xB55, 0xB55},     {0xC04, 0xC3C},
     {0xC77, 0xC77},     {0xC84, 0xC84},     {0xD00, 0xD00},     {0xD3B, 0xD3C},
     {0xD81, 0xD81},     {0xEBA, 0xEBA},     {0xECE, 0xECE},     {0x180F, 0x1886},
     {0x1ABF, 0x1ACE},   {0x1B7D, 0x1B7E},   {0x1DF6, 0x1DFB},   {0x2E43, 0x2E5D},
     {0xA82C, 0xA82C},   {0xA8C5, 0xA8C5},   {0xA8FF, 0xA8FF},   {0xA9BD, 0xA9BD},
     {0x10D24, 0x10F89}, {0x11070, 0x11074}, {0x110C2, 0x110CD}, {0x111C9, 0x111C9},
     {0x111CF, 0x111CF}, {0x1123E, 0x11241}, {0x1133B, 0x1133B}, {0x11438, 0x1145E},
     {0x11660, 0x1166C}, {0x116B9, 0x116B9}, {0x1182F, 0x11FFF}, {0x12FF1, 0x13455},
     {0x16E97, 0x16F4F}, {0x16FE2, 0x16FE4}, {0x1CF00, 0x1CF46}, {0x1E000, 0x1E4EF},
     {0x1E944, 0x1E95F}}};

bool is_after_unicode_8(char32_t c) {
  const auto range =
      std::lower_bound(kAfterUnicode8.begin(), kAfterUnicode8.end(), c,
                       [](const auto& r, char32_t value) { return r.second < value; });
  return range != kAfterUnicode8.end() && range->first <= c;
}

bool is_continuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

}  // namespace

CodePoint decode_before(std::string_view text, size_t offset) {
  assert(offset > 0);
  size_t begin = offset - 1;
  while (begin > 0 && is_continuation(text[begin])) {
    --begin;
  }
  return decode_at(text, begin);
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | c >> 12));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | c >> 18));
    out.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

std::u32string to_utf32(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_at(text, i);
    out.push_back(c.value);
    i += c.length;
  }
  return out;
}

Sequence classify(std::string_view bytes, size_t offset) {
  const auto first = static_cast<uint8_t>(bytes[offset]);
  if (first < 0x80) {
    return {Sequence::Kind::kCharacter, 1};
  }
  // Table 3-7 of the Unicode standard: the range of the second byte depends on the first.
  uint32_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    low = first == 0xE0 ? 0xA0 : low;
    high = first == 0xED ? 0x9F : high;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    low = first == 0xF0 ? 0x90 : low;
    high = first == 0xF4 ? 0x8F : high;
  } else {
    return {Sequence::Kind::kInvalid, 1};
  }
  for (uint32_t i = 1; i < length; ++i) {
    if (offset + i >= bytes.size()) {
      return {Sequence::Kind::kIncomplete, i};
    }
    const auto byte = static_cast<uint8_t>(bytes[offset + i]);
    if (byte < low || byte > high) {
      return {Sequence::Kind::kInvalid, i};
    }
    low = 0x80;
    high = 0xBF;
  }
  return {Sequence::Kind::kCharacter, length};
}

size_t find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t word = 0;
    if (i + sizeof(word) <= text.size()) {
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080U) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const Sequence sequence = classify(text, i);
    if (sequence.kind != Sequence::Kind::kCharacter) {
      return i;
    }
    i += sequence.length;
  }
  return text.size();
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

const CharClasses& CharClasses::table() {
  static const CharClasses classes;
  return classes;
}

CharClasses::CharClasses() {
  OnigEncoding encoding = ONIG_ENCODING_UTF8;
  check(onig_initialize(&encoding, 1) == ONIG_NORMAL, "Oniguruma: cannot initialise");
  std::vector<uint8_t> flat(kCodePoints, 0);
  mark_class(flat, "L", kLetter);
  mark_class(flat, "N", kNumber);
  mark_class(flat, "Space", kSpace);
  mark_class(flat, "Word", kWord);
  std::map<std::string_view, uint16_t> seen;
  for (size_t begin = 0; begin < kCodePoints; begin += kPageSize) {
    const std::string_view page(reinterpret_cast<const char*>(flat.data()) + begin, kPageSize);
    const auto [where, added] = seen.emplace(page, static_cast<uint16_t>(seen.size()));
    if (added) {
      pages_.insert(pages_.end(), page.begin(), page.end());
    }
    page_of_.push_back(where->second);
  }
}

bool is_space(char32_t c) {
  return (CharClasses::table().of(c) & kSpace) != 0;
}

bool is_word(char32_t c) {
  return (CharClasses::table().of(c) & kWord) != 0 || c == 0x200C || c == 0x200D;
}

bool is_numeric(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO && !is_after_unicode_8(c);
}

bool is_nonspacing_mark(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_MN && !is_after_unicode_8(c);
}

bool is_mark(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

bool is_control(char32_t c) {
  const auto kind = category(c);
  const bool control =
      kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_CO;
  return control && !is_after_unicode_8(c);
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_at(text, i);
    i += c.length;
    if (c.value < 0x80) {
      out.push_back(static_cast<char>(c.value >= 'A' && c.value <= 'Z' ? c.value + 32 : c.value));
    } else if (c.value == 0x130) {
      out += "i\u0307";
    } else {
      append_utf8(out,
                  static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))));
    }
  }
  return out;
}

bool is_surely_nfc(std::string_view text) {
  // Ranges without combining characters, without canonical decompositions, and of which none joins
  // the character before it: up to U+02FF, Cyrillic and general punctuation in part, kana, CJK.
  for (size_t i = 0; i < text.size();) {
    uint64_t word = 0;
    if (i + sizeof(word) <= text.size()) {
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080U) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const CodePoint c = decode_at(text, i);
    i += c.length;
    if (c.value < 0x300 || (c.value >= 0x400 && c.value <= 0x482) ||
        (c.value >= 0x2010 && c.value <= 0x205E) || (c.value >= 0x3041 && c.value <= 0x3096) ||
        (c.value >= 0x30A1 && c.value <= 0x30FA) || (c.value >= 0x4E00 && c.value <= 0x9FFF) ||
        (c.value >= 0xAC00 && c.value <= 0xD7A3)) {
      continue;
    }
    return false;
  }
  return true;
}

std::string normalize(std::string_view text, Form form) {
  if (text.empty() || (form == Form::kNfc && is_surely_nfc(text)) || is_ascii(text)) {
    return std::string(text);
  }
  static constexpr std::array<int, 4> kOptions = {UTF8PROC_COMPOSE, UTF8PROC_DECOMPOSE,
                                                  UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
                                                  UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT};
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &result,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | kOptions[static_cast<size_t>(form)]));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  check(length >= 0, "normal form of {} bytes of text: {}", text.size(), utf8proc_errmsg(length));
  return std::string(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

}  // namespace wick::unicode
