// Splits by pattern, by class and by byte-level rules.
#include "wick/text/pretokenizer.h"

#include <nlohmann/json.hpp>

#include <array>
#include <functional>
#include <map>

#include "wick/base/error.h"
#include "wick/text/component.h"
#include "wick/text/metaspace.h"
#include "wick/text/regex.h"
#include "wick/text/splitters.h"
#include "wick/text/unicode.h"

namespace wick {

namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior parse_behavior(const Component& component) {
  static const std::map<std::string, Behavior> kNames = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  const std::string name = component.string("behavior", "Isolated");
  const auto found = kNames.find(name);
  check(found != kNames.end(),
        "{}: the behavior \"{}\" is not known; known are Removed, Isolated, MergedWithPrevious, "
        "MergedWithNext, Contiguous",
        component.where(), name);
  return found->second;
}

// Joins or drops stretches as the behavior says; the result is in order.
void regroup(std::vector<Stretch>& stretches, Behavior behavior) {
  std::vector<Stretch> result;
  bool previous_match = false;
  switch (behavior) {
    case Behavior::kIsolated:
      return;
    case Behavior::kRemoved:
      std::erase_if(stretches, [](const Stretch& s) { return s.is_match; });
      return;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Stretch& s : stretches) {
        const bool joins = behavior == Behavior::kContiguous ? s.is_match == previous_match
                                                             : s.is_match && !previous_match;
        if (joins && !result.empty()) {
          result.back().end = s.end;
        } else {
          result.push_back(s);
        }
        previous_match = s.is_match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto s = stretches.rbegin(); s != stretches.rend(); ++s) {
        if (s->is_match && !previous_match && !result.empty()) {
          result.back().begin = s->begin;
        } else {
          result.push_back(*s);
        }
        previous_match = s->is_match;
      }
      std::reverse(result.begin(), result.end());
      break;
  }
  stretches = std::move(result);
}

void emit(const Piece& piece, const std::vector<Stretch>& stretches, Pieces& out) {
  for (const Stretch& s : stretches) {
    out.list.push_back(
        {piece.text.substr(s.begin, s.end - s.begin), piece.at_start && s.begin == 0});
  }
}

// Stretches of single characters that `matches`, and of what lies between.
template <class Matches>
std::vector<Stretch> split_characters(std::string_view text, Matches matches) {
  std::vector<Stretch> stretches;
  size_t previous = 0;
  for (size_t i = 0; i < text.size();) {
    const unicode::CodePoint c = unicode::decode_at(text, i);
    if (matches(c.value)) {
      if (previous < i) {
        stretches.push_back({previous, i, false});
      }
      stretches.push_back({i, i + c.length, true});
      previous = i + c.length;
    }
    i += c.length;
  }
  if (previous < text.size()) {
    stretches.push_back({previous, text.size(), false});
  }
  return stretches;
}

class Split : public PreTokenizer {
 public:
  Split(Pattern pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(const Piece& piece, Pieces& out) const override {
    std::vector<Stretch> stretches;
    pattern_.split(piece.text, stretches);
    if (invert_) {
      for (Stretch& s : stretches) {
        s.is_match = !s.is_match;
      }
    }
    regroup(stretches, behavior_);
    emit(piece, stretches, out);
  }

 private:
  Pattern pattern_;
  Behavior behavior_;
  bool invert_;
};

// A pattern that has a hand-written splitter, which covers the whole text.
class KnownSplit : public PreTokenizer {
 public:
  explicit KnownSplit(Splitter splitter) : splitter_(splitter) {}
  void apply(const Piece& piece, Pieces& out) const override {
    const size_t first = out.list.size();
    splitter_(piece.text, out.list);
    if (piece.at_start && first < out.list.size()) {
      out.list[first].at_start = true;
    }
  }

 private:
  Splitter splitter_;
};

class SplitByClass : public PreTokenizer {
 public:
  using Predicate = bool (*)(char32_t);
  SplitByClass(Predicate predicate, Behavior behavior)
      : predicate_(predicate), behavior_(behavior) {}

  void apply(const Piece& piece, Pieces& out) const override {
    std::vector<Stretch> stretches = split_characters(piece.text, predicate_);
    regroup(stretches, behavior_);
    emit(piece, stretches, out);
  }

 private:
  Predicate predicate_;
  Behavior behavior_;
};

// \w+|[^\w\s]+
class Whitespace : public PreTokenizer {
 public:
  void apply(const Piece& piece, Pieces& out) const override {
    const auto kind = [&](unicode::CodePoint c) {
      return unicode::is_word(c.value) ? 1 : unicode::is_space(c.value) ? 0 : 2;
    };
    for (size_t i = 0; i < piece.text.size();) {
      const size_t begin = i;
      const int first = kind(unicode::decode_at(piece.text, i));
      while (i < piece.text.size()) {
        const unicode::CodePoint c = unicode::decode_at(piece.text, i);
        if (kind(c) != first) {
          break;
        }
        i += c.length;
      }
      if (first != 0) {
        out.list.push_back({piece.text.substr(begin, i - begin), piece.at_start && begin == 0});
      }
    }
  }
};

class Chain : public PreTokenizer {
 public:
  explicit Chain(std::vector<std::unique_ptr<const PreTokenizer>> steps)
      : steps_(std::move(steps)) {}

  void apply(const Piece& piece, Pieces& out) const override {
    // Each step cuts what the step before it left; only the last writes to `out`.
    std::vector<Piece> current = {piece};
    for (const auto& step : steps_) {
      std::vector<Piece> saved;
      std::swap(saved, out.list);
      for (const Piece& word : current) {
        if (!word.text.empty()) {
          step->apply(word, out);
        }
      }
      std::swap(current, out.list);
      std::swap(out.list, saved);
    }
    out.list.insert(out.list.end(), current.begin(), current.end());
  }

 private:
  std::vector<std::unique_ptr<const PreTokenizer>> steps_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool raw) : add_prefix_space_(add_prefix_space), raw_(raw) {}

  void apply(const Piece& piece, Pieces& out) const override {
    std::string_view text = piece.text;
    if (add_prefix_space_ && !text.starts_with(' ')) {
      text = out.own(' ' + std::string(text));
    }
    out.list.push_back({raw_ ? text : out.own(to_byte_characters(text)), piece.at_start});
  }

 private:
  bool add_prefix_space_;
  bool raw_;
};

// Adds the space before the pattern cuts; the bytes are mapped after that.
class PrefixSpace : public PreTokenizer {
 public:
  void apply(const Piece& piece, Pieces& out) const override {
    const bool has_space = piece.text.starts_with(' ');
    out.list.push_back(
        {has_space ? piece.text : out.own(' ' + std::string(piece.text)), piece.at_start});
  }
};

using Steps = std::vector<std::unique_ptr<const PreTokenizer>>;

std::unique_ptr<const PreTokenizer> join(Steps steps) {
  return steps.size() == 1 ? std::move(steps[0]) : std::make_unique<Chain>(std::move(steps));
}

std::unique_ptr<const PreTokenizer> parse_byte_level(const Component& component,
                                                     LastByteLevel last) {
  const bool raw = last == LastByteLevel::kRaw;
  const bool add_prefix_space = component.boolean("add_prefix_space", true);
  if (!component.boolean("use_regex", true)) {
    return std::make_unique<ByteLevel>(add_prefix_space, raw);
  }
  Steps steps;
  if (add_prefix_space) {
    steps.push_back(std::make_unique<PrefixSpace>());
  }
  steps.push_back(std::make_unique<KnownSplit>(find_splitter(kGpt2Pattern)));
  if (!raw) {
    steps.push_back(std::make_unique<ByteLevel>(false, false));
  }
  return join(std::move(steps));
}

std::unique_ptr<const PreTokenizer> parse_split(const Component& component) {
  const Behavior behavior = parse_behavior(component);
  const bool invert = component.boolean("invert", false);
  const nlohmann::json& pattern = component.raw("pattern");
  if (pattern.is_object() && pattern.contains("Regex") && pattern["Regex"].is_string()) {
    const Splitter known = find_splitter(pattern["Regex"].get<std::string>());
    // These patterns leave no gap, so both say: keep each match.
    const bool keeps_matches =
        (behavior == Behavior::kIsolated && !invert) || (behavior == Behavior::kRemoved && invert);
    if (known != nullptr && keeps_matches) {
      return std::make_unique<KnownSplit>(known);
    }
  }
  return std::make_unique<Split>(parse_pattern(component, "pattern"), behavior, invert);
}

std::array<int16_t, 324> make_byte_of_character() {
  std::array<int16_t, 324> table{};
  table.fill(-1);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    table[printable ? byte : next++] = static_cast<int16_t>(byte);
  }
  return table;
}

}  // namespace

int byte_of_character(char32_t c) {
  static const std::array<int16_t, 324> kTable = make_byte_of_character();
  return c < kTable.size() ? kTable[c] : -1;
}

std::string to_byte_characters(std::string_view bytes) {
  static const std::array<std::string, 256> kTable = [] {
    std::array<std::string, 256> table;
    for (char32_t c = 0; c < 324; ++c) {
      if (const int byte = byte_of_character(c); byte >= 0) {
        unicode::append_utf8(table[byte], c);
      }
    }
    return table;
  }();
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char byte : bytes) {
    out += kTable[static_cast<uint8_t>(byte)];
  }
  return out;
}

bool ends_with_byte_level(const Component& component) {
  if (component.type() == "Sequence") {
    const std::vector<Component> steps = component.objects("pretokenizers");
    return !steps.empty() && ends_with_byte_level(steps.back());
  }
  return component.type() == "ByteLevel";
}

std::unique_ptr<const PreTokenizer> parse_pretokenizer(const Component& component,
                                                       LastByteLevel last) {
  const std::string type = component.type();
  if (type == "ByteLevel") {
    return parse_byte_level(component, last);
  }
  if (type == "Split") {
    return parse_split(component);
  }
  if (type == "Metaspace") {
    return std::make_unique<MetaspaceSplit>(parse_metaspace(component));
  }
  if (type == "BertPreTokenizer") {
    Steps steps;
    steps.push_back(std::make_unique<SplitByClass>(&unicode::is_space, Behavior::kRemoved));
    steps.push_back(std::make_unique<SplitByClass>(&unicode::is_punctuation, Behavior::kIsolated));
    return join(std::move(steps));
  }
  if (type == "Whitespace") {
    return std::make_unique<Whitespace>();
  }
  if (type == "WhitespaceSplit") {
    return std::make_unique<SplitByClass>(&unicode::is_space, Behavior::kRemoved);
  }
  if (type == "Punctuation") {
    return std::make_unique<SplitByClass>(&unicode::is_punctuation, parse_behavior(component));
  }
  if (type == "Digits") {
    return std::make_unique<SplitByClass>(&unicode::is_numeric,
                                          component.boolean("individual_digits", false)
                                              ? Behavior::kIsolated
                                              : Behavior::kContiguous);
  }
  if (type == "Sequence") {
    const std::vector<Component> parts = component.objects("pretokenizers");
    Steps steps;
    for (size_t i = 0; i < parts.size(); ++i) {
      steps.push_back(
          parse_pretokenizer(parts[i], i + 1 == parts.size() ? last : LastByteLevel::kMapped));
    }
    return join(std::move(steps));
  }
  component.fail_unknown("pre-tokenizer",
                         "ByteLevel, Split, Metaspace, BertPreTokenizer, Whitespace, "
                         "WhitespaceSplit, Punctuation, Digits, Sequence");
}

}  // namespace wick
