// Tokenizers: small ones written out here, so that every id can be checked by hand, and what a bad
// file or text is answered.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/base/random.h"
#include "wick/text/component.h"
#include "wick/text/normalizer.h"
#include "wick/text/tokenizer.h"

namespace wick {
namespace {

using nlohmann::json;
using test::message_of;
using Ids = std::vector<int32_t>;

class TokenizerTest : public testing::Test {
 protected:
  std::filesystem::path write(const char* name, const std::string& text) {
    auto path = folder_.path() / name;
    write_text_atomically(path, text);
    return path;
  }
  Tokenizer make(const json& tokenizer) {
    return Tokenizer::from_file(write("tokenizer.json", tokenizer.dump()));
  }
  // The message for this content, without the folder.
  std::string refusal_of_text(const std::string& content) {
    const auto path = write("tokenizer.json", content);
    std::string message = message_of([&] { Tokenizer::from_file(path); });
    const std::string prefix = folder_.path().string() + "/";
    EXPECT_TRUE(message.starts_with(prefix)) << message;
    return message.substr(std::min(prefix.size(), message.size()));
  }
  std::string refusal(const json& tokenizer) { return refusal_of_text(tokenizer.dump()); }

  test::TemporaryFolder folder_;
};

// Bytes "a b c Ġ", merges a+b, Ġ+ab, and a special token.
json byte_level() {
  return json::parse(R"({
    "added_tokens": [{"id": 7, "content": "<end>", "special": true, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<end>", "type_id": 0}}],
      "special_tokens": {"<end>": {"id": "<end>", "ids": [7], "tokens": ["<end>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "Ġab": 5, "Ã": 6},
              "merges": ["a b", "Ġ ab"]}})");
}

TEST_F(TokenizerTest, MergesByRankAndFramesBySpecialTokens) {
  const Tokenizer tokenizer = make(byte_level());
  EXPECT_EQ(tokenizer.encode("ab abc", false), (Ids{4, 5, 2}));
  EXPECT_EQ(tokenizer.encode("ab abc", true), (Ids{4, 5, 2, 7}));
  EXPECT_EQ(tokenizer.encode("a<end>b", false), (Ids{0, 7, 1}));
  EXPECT_EQ(tokenizer.encode("", false), Ids{});
  EXPECT_EQ(tokenizer.decode(Ids{4, 5, 2, 7}, false), "ab abc<end>");
  EXPECT_EQ(tokenizer.decode(Ids{4, 5, 2, 7}, true), "ab abc");
  EXPECT_EQ(tokenizer.vocab_size(), 8);
  EXPECT_EQ(tokenizer.token_to_id("Ġab"), 5);
  EXPECT_EQ(tokenizer.token_to_id("none"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(5), "Ġab");
  EXPECT_TRUE(tokenizer.is_special(7));
  EXPECT_FALSE(tokenizer.is_special(5));
}

TEST_F(TokenizerTest, ReadsMergesAsPairsAndInfersTheModel) {
  json file = byte_level();
  file["model"].erase("type");
  file["model"]["merges"] = json::parse(R"([["a", "b"], ["Ġ", "ab"]])");
  EXPECT_EQ(make(file).encode("ab abc", false), (Ids{4, 5, 2}));
}

TEST_F(TokenizerTest, IgnoreMergesTakesAWholeWord) {
  json file = byte_level();
  file["model"]["vocab"]["cab"] = 8;
  EXPECT_EQ(make(file).encode("cab", false), (Ids{2, 4}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(make(file).encode("cab", false), Ids{8});
}

TEST_F(TokenizerTest, AddedTokensTakeSpacesAndRespectWords) {
  json file = byte_level();
  file["added_tokens"] = json::parse(R"([
    {"id": 7, "content": "<l>", "lstrip": true}, {"id": 8, "content": "<r>", "rstrip": true},
    {"id": 9, "content": "bc", "single_word": true}, {"id": 10, "content": "<l>c"}])");
  file.erase("post_processor");
  const Tokenizer tokenizer = make(file);
  EXPECT_EQ(tokenizer.encode("a  <l> b", false), (Ids{0, 7, 3, 1}));
  EXPECT_EQ(tokenizer.encode("a <r>  b", false), (Ids{0, 3, 8, 1}));
  EXPECT_EQ(tokenizer.encode("bc abc", false), (Ids{9, 5, 2}));
  EXPECT_EQ(tokenizer.encode("<l>cc", false), (Ids{10, 2}));  // the longest wins
}

// Pieces with U+2581, unknown characters as bytes.
json sentencepiece() {
  json file = json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "normalized": false},
                     {"id": 1, "content": "<s>", "special": true, "normalized": false}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
              "vocab": {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "▁ab": 6,
                        "<0xC3>": 7, "<0xA9>": 8},
              "merges": ["▁ a", "▁a b"]}})");
  return file;
}

TEST_F(TokenizerTest, FallsBackToBytesAndFusesUnknowns) {
  const Tokenizer tokenizer = make(sentencepiece());
  EXPECT_EQ(tokenizer.encode("ab a", false), (Ids{6, 5}));
  EXPECT_EQ(tokenizer.encode("é", false), (Ids{2, 7, 8}));
  EXPECT_EQ(tokenizer.encode("xyzb", false), (Ids{2, 0, 4}));
  EXPECT_EQ(tokenizer.decode(Ids{6, 5, 2, 7, 8}, true), "ab a é");
  EXPECT_EQ(tokenizer.decode(Ids{6, 7}, true), "ab\uFFFD");
}

TEST_F(TokenizerTest, WordPieceTakesTheLongestPieces) {
  const Tokenizer tokenizer = make(json::parse(R"({
    "normalizer": {"type": "BertNormalizer", "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 6,
      "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "un": 3, "##aff": 4, "##able": 5, "##a": 6,
                ".": 7, "cafe": 8}}})"));
  EXPECT_EQ(tokenizer.encode("Unaff. CAFÉ", true), (Ids{1, 3, 4, 7, 8, 2}));
  EXPECT_EQ(tokenizer.encode("unx", false), Ids{0});
  EXPECT_EQ(tokenizer.encode("unaffab", false), Ids{0});  // longer than six characters
  EXPECT_EQ(tokenizer.decode(Ids{3, 4, 7, 8}, true), "unaff. cafe");
}

TEST_F(TokenizerTest, NormalizersDoWhatTheirNamesSay) {
  const auto apply = [](const char* type, std::string_view text) {
    const json config = {{"type", type}};
    return parse_normalizer(Component(config, "test"))->apply(text);
  };
  EXPECT_EQ(apply("NFC", "e\u0301"), "é");
  EXPECT_EQ(apply("NFD", "é"), "e\u0301");
  EXPECT_EQ(apply("NFKC", "ﬁ①"), "fi1");
  EXPECT_EQ(apply("NFKD", "ﬁé"), "fie\u0301");
  EXPECT_EQ(apply("Lowercase", "ÀΣİ"), "àσi\u0307");
  EXPECT_EQ(apply("StripAccents", "e\u0301a"), "ea");
  EXPECT_EQ(apply("Strip", " \u3000a b\n"), "a b");
  EXPECT_EQ(apply("BertNormalizer", "Hé\u200D\tÖ中\uFFFD"), "he o 中 ");
}

TEST_F(TokenizerTest, MetaspaceFirstAsksWhereTheInputBegins) {
  json file = sentencepiece();
  file["pre_tokenizer"] = json::parse(R"({"type": "Metaspace", "prepend_scheme": "first"})");
  file["normalizer"] = nullptr;
  EXPECT_EQ(make(file).encode("ab<s>ab", false), (Ids{6, 1, 3, 4}));
  // What is left of " ab" begins at the second byte of the input.
  file["normalizer"] =
      json::parse(R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]})");
  EXPECT_EQ(make(file).encode(" ab", false), (Ids{3, 4}));
  EXPECT_EQ(make(file).encode("ab", false), Ids{6});
}

TEST_F(TokenizerTest, AJoinerIsPartOfAWord) {
  json file = byte_level();
  file["added_tokens"] = json::parse(R"([{"id": 9, "content": "bc", "single_word": true}])");
  file.erase("post_processor");
  EXPECT_EQ(make(file).encode("bc", false), Ids{9});
  EXPECT_EQ(make(file).encode("\u200Dbc", false), (Ids{1, 2}));
}

TEST_F(TokenizerTest, TheConfigurationNamesSpecialTokensAndOverridesTheFrame) {
  write("tokenizer.json", sentencepiece().dump());
  write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true,
    "bos_token": {"content": "<s>"}, "eos_token": "ab", "chat_template": "{{ messages }}"})");
  const Tokenizer tokenizer = Tokenizer::from_folder(folder_.path());
  EXPECT_EQ(tokenizer.encode("a", true), (Ids{1, 5}));
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), std::nullopt);  // no such token
  EXPECT_EQ(tokenizer.chat_template(), "{{ messages }}");

  write("chat_template.jinja", "newer");
  write("tokenizer_config.json",
        R"({"tokenizer_class": "LlamaTokenizer", "add_eos_token": true, "eos_token": "nope"})");
  EXPECT_EQ(message_of([&] { Tokenizer::from_folder(folder_.path()); }),
            fmt::format("{0}/tokenizer_config.json: add_eos_token is true, but the eos_token "
                        "\"nope\" is not in {0}/tokenizer.json",
                        folder_.path().string()));
  write("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "old"}]})");
  EXPECT_EQ(Tokenizer::from_folder(folder_.path()).chat_template(), "newer");
}

TEST_F(TokenizerTest, StreamingHoldsBackWhatMayStillBecomeACharacter) {
  const Tokenizer bytes = make(byte_level());
  StreamingDecoder stream(bytes);
  EXPECT_EQ(stream.push(4), "ab");
  EXPECT_EQ(stream.push(6), "");  // C3, the first half
  EXPECT_EQ(stream.push(0), "\uFFFDa");
  EXPECT_EQ(stream.push(6), "");
  EXPECT_EQ(stream.push(1000), "");  // beyond the vocabulary: a padded table
  EXPECT_EQ(stream.finish(), "\uFFFD");

  const Tokenizer pieces = make(sentencepiece());
  StreamingDecoder second(pieces);
  EXPECT_EQ(second.push(5), "a");
  EXPECT_EQ(second.push(7), "");
  EXPECT_EQ(second.push(8), "");
  EXPECT_EQ(second.push(5), "é a");
  EXPECT_EQ(second.finish(), "");
}

TEST_F(TokenizerTest, StreamedTextIsDecodedTextForAnyIds) {
  for (const json& file : {byte_level(), sentencepiece()}) {
    const Tokenizer tokenizer = make(file);
    const Random random(5, 0);
    for (uint64_t round = 0; round < 200; ++round) {
      Ids ids;
      std::string streamed;
      StreamingDecoder stream(tokenizer);
      for (uint64_t i = 0; i < 12; ++i) {
        ids.push_back(static_cast<int32_t>(
            random.below(round * 12 + i, static_cast<uint32_t>(tokenizer.vocab_size()))));
        streamed += stream.push(ids.back());
      }
      EXPECT_EQ(streamed + stream.finish(), tokenizer.decode(ids, true));
    }
  }
}

TEST_F(TokenizerTest, EncodesFromSeveralThreads) {
  const Tokenizer tokenizer = make(byte_level());
  const std::string text = "ab abc cab bca  abab";
  const Ids expected = tokenizer.encode(text, true);
  std::vector<std::thread> threads;
  threads.reserve(4);
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        wrong[t] += tokenizer.encode(text, true) != expected ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST_F(TokenizerTest, BadTextAndBadIdsAreErrors) {
  const Tokenizer tokenizer = make(byte_level());
  EXPECT_EQ(message_of([&] { tokenizer.encode("ab\xC3(", false); }),
            "tokenizer: the text is not UTF-8 at byte 2 of 4");
  const std::string path = (folder_.path() / "tokenizer.json").string();
  EXPECT_EQ(message_of([&] {
              tokenizer.decode(Ids{0, 8}, false);
            }),
            "tokenizer: ids[1] is 8, which is no token; " + path + " has ids 0 to 7");
  EXPECT_EQ(message_of([&] { tokenizer.id_to_token(-1); }),
            "tokenizer: -1 is no token; " + path + " has ids 0 to 7");
}

TEST_F(TokenizerTest, AMalformedFileIsNamedWithByteAndLine) {
  EXPECT_EQ(refusal_of_text("{\n\"model\": [1,\n}").substr(0, 55),
            "tokenizer.json: not valid JSON at byte 16 (line 3): syn");
  EXPECT_EQ(refusal_of_text("").substr(0, 49), "tokenizer.json: not valid JSON at byte 0 (line 1)");
  EXPECT_EQ(refusal_of_text("[]"), "tokenizer.json: must hold an object, holds array");
  EXPECT_EQ(refusal_of_text("{}"), "tokenizer.json: \"model\" is missing; an object is expected");
  EXPECT_EQ(refusal_of_text("{\"model\": {\"type\": \"BPE\"}}"),
            "tokenizer.json: model.vocab is missing or empty");
  EXPECT_EQ(refusal_of_text("{\"a\": " + std::string(100, '[')),
            "tokenizer.json: nested deeper than 64 levels");
  EXPECT_NE(message_of([] { Tokenizer::from_folder("/no/such/folder"); }).find("no tokenizer.json"),
            std::string::npos);
}

TEST_F(TokenizerTest, AnUnknownComponentIsNamed) {
  json file = byte_level();
  file["pre_tokenizer"] = json::parse(
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Psychic"}]})");
  EXPECT_EQ(refusal(file),
            "tokenizer.json: pre_tokenizer.pretokenizers[1]: the pre-tokenizer \"Psychic\" is not "
            "known; known are ByteLevel, Split, Metaspace, BertPreTokenizer, Whitespace, "
            "WhitespaceSplit, Punctuation, Digits, Sequence");
  const auto refusal_with = [&](const char* part) {
    json changed = byte_level();
    changed[part] = {{"type", "Psychic"}};
    const std::string message = refusal(changed);
    return message.substr(0, message.find(';'));
  };
  EXPECT_EQ(refusal_with("normalizer"),
            "tokenizer.json: normalizer: the normalizer \"Psychic\" is not known");
  EXPECT_EQ(refusal_with("decoder"),
            "tokenizer.json: decoder: the decoder \"Psychic\" is not known");
  EXPECT_EQ(refusal_with("post_processor"),
            "tokenizer.json: post_processor: the post-processor \"Psychic\" is not known");
  file = byte_level();
  file["model"] = json::parse(R"({"vocab": [["a", -1.5], ["b", -2]]})");
  EXPECT_EQ(refusal(file),
            "tokenizer.json: model: the model \"Unigram\" is not known; known are BPE, WordPiece");
}

TEST_F(TokenizerTest, BadTablesAreRefused) {
  const auto refusal_with = [&](const char* field, const json& value) {
    json file = byte_level();
    file["model"][field] = value;
    return refusal(file);
  };
  EXPECT_EQ(refusal_with("vocab", {{"a", 99999999}}),
            "tokenizer.json: model.vocab: the id of \"a\" must be from 0 to 4194303, is 99999999");
  EXPECT_EQ(refusal_with("vocab", {{"a", -1}}),
            "tokenizer.json: model.vocab: the id of \"a\" must be from 0 to 4194303, is -1");
  EXPECT_EQ(refusal_with("vocab", {{"a", "x"}}),
            "tokenizer.json: model.vocab: the id of \"a\" must be a number, is string");
  EXPECT_EQ(refusal_with("merges", {"a b", "b zebra"}),
            "tokenizer.json: model.merges[1] (\"b\" + \"zebra\") needs \"zebra\", which is not in "
            "the vocabulary");
  EXPECT_EQ(refusal_with("merges", {"a b", "b c"}),
            "tokenizer.json: model.merges[1] (\"b\" + \"c\") needs \"bc\", which is not in the "
            "vocabulary");
  EXPECT_EQ(refusal_with("merges", {"a b c"}),
            "tokenizer.json: model.merges[0] must be two tokens with one space between, is \"a b "
            "c\"");
  EXPECT_EQ(refusal_with("merges", {{"a"}}),
            "tokenizer.json: model.merges[0] must be two tokens, is 1");
  EXPECT_EQ(refusal_with("merges", 7), "tokenizer.json: model.merges must be an array, is number");
  EXPECT_EQ(refusal_with("vocab", "a"), "tokenizer.json: model.vocab must be an object, is string");
  EXPECT_EQ(refusal_with("merges", {7}),
            "tokenizer.json: model.merges[0] must be two tokens, holds a number");
  EXPECT_EQ(refusal_with("unk_token", "<what>"),
            "tokenizer.json: model: the unk_token \"<what>\" is not in the vocabulary");
}

TEST_F(TokenizerTest, BadFieldsAreRefused) {
  const auto refusal_with = [&](const char* part, const char* value) {
    json file = byte_level();
    file[part] = json::parse(value);
    return refusal(file);
  };
  EXPECT_EQ(refusal_with("added_tokens", R"([{"id": -5, "content": "x"}])"),
            "tokenizer.json: added_tokens[0]: \"id\" must be a whole number from 0 to 4194303, is "
            "-5");
  EXPECT_EQ(refusal_with("added_tokens", R"([{"id": 5}])"),
            "tokenizer.json: added_tokens[0]: \"content\" is missing; a string is expected");
  EXPECT_EQ(refusal_with("pre_tokenizer", R"({"type": "ByteLevel", "add_prefix_space": "yes"})"),
            "tokenizer.json: pre_tokenizer: \"add_prefix_space\" must be true or false, is "
            "\"yes\"");
  EXPECT_EQ(refusal_with("normalizer", R"({"type": "Replace", "content": "",
                                           "pattern": {"Regex": "(a"}})"),
            "tokenizer.json: normalizer.pattern: the regular expression \"(a\" does not compile: "
            "end pattern with unmatched parenthesis");
  EXPECT_EQ(refusal_with("post_processor",
                         R"({"type": "BertProcessing", "cls": ["a", 0], "sep": ["b", 900]})"),
            "tokenizer.json: post_processor: \"sep\" must name ids of the vocabulary (0 to 7), "
            "names 900");
  EXPECT_EQ(refusal_with("pre_tokenizer", R"({"type": "Metaspace", "prepend_scheme": "maybe"})"),
            "tokenizer.json: pre_tokenizer: the prepend_scheme \"maybe\" is not known; known are "
            "always, first, never");
}

// The budget is 5 MB/s a core. This machine does some 30 in a release build; a build without
// optimisation, under sanitizers or on a busy machine must still pass, hence the slack.
TEST(TokenizerSpeed, EncodesANovelInReasonableTime) {
  WICK_REQUIRE_DATA("text/gutenberg/war-and-peace.txt");
  const Tokenizer tokenizer = Tokenizer::from_folder(test::data_folder() / "tokenizers/qwen2.5");
  const std::string text = read_text(test::data_folder() / "text/gutenberg/war-and-peace.txt");
  const auto cpu_seconds = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  const double begin = cpu_seconds();
  const size_t count = tokenizer.encode(text, false).size();
  const double rate = static_cast<double>(text.size()) * 1e-6 / (cpu_seconds() - begin);
  fmt::print("{:.1f} MB/s, {} ids\n", rate, count);
  EXPECT_EQ(count, 761086U);  // the reference's count
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_GT(rate, 5.0);
#else
  EXPECT_GT(rate, 0.1);
#endif
}

}  // namespace
}  // namespace wick
