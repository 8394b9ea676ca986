// Pre-tokenizers: the recorded cuts of 141 public patterns, and the hand-written splitters against
// the regular expressions they stand for.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/base/random.h"
#include "wick/text/component.h"
#include "wick/text/pretokenizer.h"
#include "wick/text/regex.h"
#include "wick/text/splitters.h"
#include "wick/text/unicode.h"

namespace wick {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

Words split(const json& pretokenizer, std::string_view text) {
  const auto parsed = parse_pretokenizer(Component(pretokenizer, "test"), LastByteLevel::kMapped);
  Pieces pieces;
  if (!text.empty()) {
    parsed->apply({text, true}, pieces);
  }
  Words words;
  for (const Piece& piece : pieces.list) {
    if (!piece.text.empty()) {
      words.emplace_back(piece.text);
    }
  }
  return words;
}

Words split_by(const char* pattern, const char* behavior, bool invert, std::string_view text) {
  return split({{"type", "Split"},
                {"pattern", {{"Regex", pattern}}},
                {"behavior", behavior},
                {"invert", invert}},
               text);
}

// The reference's own examples of the five behaviors.
TEST(Split, EachBehaviorGroupsMatchesInItsWay) {
  const char* text = "the-final--countdown";
  EXPECT_EQ(split_by("-", "Removed", false, text), (Words{"the", "final", "countdown"}));
  EXPECT_EQ(split_by("-", "Isolated", false, text),
            (Words{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(split_by("-", "MergedWithPrevious", false, text),
            (Words{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(split_by("-", "MergedWithNext", false, text),
            (Words{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(split_by("-", "Contiguous", false, text),
            (Words{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(split_by("-", "Removed", true, text), (Words{"-", "-", "-"}));
}

TEST(Split, OtherPreTokenizersCutByClass) {
  EXPECT_EQ(split({{"type", "Digits"}, {"individual_digits", true}}, "a12b"),
            (Words{"a", "1", "2", "b"}));
  EXPECT_EQ(split({{"type", "Digits"}}, "a12b"), (Words{"a", "12", "b"}));
  EXPECT_EQ(split({{"type", "Punctuation"}}, "hey!? ho"), (Words{"hey", "!", "?", " ho"}));
  EXPECT_EQ(split({{"type", "Punctuation"}, {"behavior", "Contiguous"}}, "hey!? ho"),
            (Words{"hey", "!?", " ho"}));
  EXPECT_EQ(split({{"type", "Whitespace"}}, "it's  a _b-c"),
            (Words{"it", "'", "s", "a", "_b", "-", "c"}));
  EXPECT_EQ(split({{"type", "WhitespaceSplit"}}, " it's\u3000a "), (Words{"it's", "a"}));
  EXPECT_EQ(split({{"type", "BertPreTokenizer"}}, "don't  go."),
            (Words{"don", "'", "t", "go", "."}));
  EXPECT_EQ(split({{"type", "ByteLevel"}, {"add_prefix_space", true}}, "I'm é"),
            (Words{"ĠI", "'m", "ĠÃ©"}));
}

TEST(Metaspace, ReadsTheNewAndTheOldForm) {
  const json always = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}};
  EXPECT_EQ(split(always, "Hey  you"), (Words{"▁Hey", "▁", "▁you"}));
  EXPECT_EQ(split(always, " Hey"), (Words{"▁Hey"}));
  const json whole = {{"type", "Metaspace"}, {"prepend_scheme", "first"}, {"split", false}};
  EXPECT_EQ(split(whole, "Hey you"), (Words{"▁Hey▁you"}));
  const json old = {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}};
  EXPECT_EQ(split(old, "Hey you"), (Words{"Hey", "_you"}));
}

TEST(Split, AgreesWithTheRecordedCutsOfPublicPatterns) {
  WICK_REQUIRE_DATA("tokenizers/split_regex/splitRegexOracle.json.gz");
  const auto folder = test::data_folder() / "tokenizers/split_regex";
  const std::string command = "gzip -dc '" + (folder / "splitRegexOracle.json.gz").string() + "'";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), &::pclose);
  const json oracle = json::parse(pipe.get())["tokens"];
  const json file = json::parse(read_text(folder / "splitRegexPatterns.json"));
  const json& defaults = file["defaults"];
  std::map<std::string, json> patterns;
  int compared = 0;
  Words differ;
  const auto compare = [&](const json& entry, const json& pattern, const std::string& key) {
    const json& inputs = entry.contains("inputs") ? entry["inputs"] : defaults["inputs"];
    const json split_config = {{"type", "Split"},
                               {"pattern", {{"Regex", pattern}}},
                               {"behavior", entry.value("behavior", defaults["behavior"])},
                               {"invert", entry.value("invert", defaults["invert"])}};
    for (size_t i = 0; i < inputs.size(); ++i, ++compared) {
      if (split(split_config, inputs[i].get<std::string>()) != oracle[key][i].get<Words>()) {
        differ.push_back(fmt::format("{} {}", key, inputs[i].dump()));
      }
    }
  };
  for (const json& entry : file["patterns"]) {
    patterns[entry["id"]] = entry["pattern"];
    compare(entry, entry["pattern"],
            entry.value(entry.contains("name") ? "name" : "id", std::string()));
  }
  for (const json& entry : file["additionalCases"]) {
    compare(entry, patterns.at(entry["patternId"]), entry["name"]);
  }
  EXPECT_GE(compared, 2008);
  // Known: Debian's Oniguruma counts the superscript two among \p{Word}.
  EXPECT_LE(differ.size(), 1U) << testing::PrintToString(differ);
}

constexpr const char* kPatterns[] = {
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};

void expect_same_cuts(const char* pattern, std::string_view text) {
  const Splitter splitter = find_splitter(pattern);
  ASSERT_NE(splitter, nullptr) << pattern;
  std::vector<Piece> pieces;
  splitter(text, pieces);
  std::vector<Stretch> stretches;
  Pattern::regex(pattern, "test").split(text, stretches);
  for (size_t i = 0; i < std::min(pieces.size(), stretches.size()); ++i) {
    const Stretch& s = stretches[i];
    ASSERT_EQ(pieces[i].text, text.substr(s.begin, s.end - s.begin))
        << pattern << " at " << s.begin;
  }
  ASSERT_EQ(pieces.size(), stretches.size()) << pattern;
}

TEST(Splitters, CutRealTextAsTheirRegularExpressions) {
  for (const char* name : {"text/gutenberg/war-and-peace.txt", "text/gutenberg/botchan.txt",
                           "text/gsm8k/test.jsonl", "text/wikitext-2/test.txt"}) {
    WICK_REQUIRE_DATA(name);
    std::string text = read_text(test::data_folder() / name).substr(0, 400000);
    text.resize(unicode::find_invalid_utf8(text));  // the cut may have split a character
    for (const char* pattern : kPatterns) {
      expect_same_cuts(pattern, text);
    }
  }
}

TEST(Splitters, CutRandomTextAsTheirRegularExpressions) {
  // Few enough characters that every alternative and every pair of neighbours comes up.
  const std::u32string alphabet =
      U"aZsSTtreveLlmMdD''' \t\n\r\u0085\u00A0\u3000\u2028"
      U"0129٣Ⅷ²é\u0301ſК中ก.,!\"-#_<|\U0001F600\u200D\uFEFF";
  const Random random(11, 3);
  uint64_t draw = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    const uint32_t length = random.below(draw++, 40);
    for (uint32_t i = 0; i < length; ++i) {
      const bool anything = random.below(draw++, 20) == 0;
      char32_t c = anything
                       ? random.below(draw++, 0x30000)
                       : alphabet[random.below(draw++, static_cast<uint32_t>(alphabet.size()))];
      if (c >= 0xD800 && c < 0xE000) {
        c = U' ';
      }
      unicode::append_utf8(text, c);
    }
    for (const char* pattern : kPatterns) {
      expect_same_cuts(pattern, text);
    }
  }
}

TEST(Splitters, AreKnownByLiteralLineEndsToo) {
  EXPECT_NE(find_splitter("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                          "?[^\\s\\p{L}\\p{N}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
            nullptr);
  EXPECT_EQ(find_splitter(R"(\p{L}+|\p{N}+)"), nullptr);
}

TEST(Regex, APatternThatBacktracksWithoutEndIsAnError) {
  const Regex regex("(a|aa)+$", "tokenizer.json: pre_tokenizer");
  try {
    (void)regex.find(std::string(200, 'a') + "b", 0);
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("tokenizer.json: pre_tokenizer: matching failed"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace wick
