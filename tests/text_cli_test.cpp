// `wick tokenize`: ids out, text back, and errors that name the line.
#include <gtest/gtest.h>

#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"

namespace wick {
namespace {

using test::ProgramResult;

class TokenizeVerb : public testing::Test {
 protected:
  void SetUp() override {
    write_text_atomically(folder_.path() / "tokenizer.json", R"({
      "added_tokens": [{"id": 4, "content": "<end>", "special": true, "normalized": false}],
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
      "post_processor": {"type": "BertProcessing", "cls": ["<end>", 4], "sep": ["<end>", 4]},
      "decoder": {"type": "ByteLevel"},
      "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
                "merges": ["a b"]}})");
  }
  ProgramResult tokenize(std::vector<std::string> flags, const std::string& input) const {
    flags.insert(flags.begin(), {"tokenize", "--model", folder_.path().string()});
    return test::run_wick(flags, input);
  }

  test::TemporaryFolder folder_;
};

TEST_F(TokenizeVerb, GivesIdsALineAndTakesThemBack) {
  const ProgramResult ids = tokenize({}, "\"ab a\"\n\n{\"text\": \"b\", \"more\": 1}\n");
  EXPECT_EQ(ids.out, "{\"ids\":[4,2,3,0,4]}\n{\"ids\":[4,1,4]}\n");
  EXPECT_EQ(ids.status, 0);
  EXPECT_EQ(tokenize({"--decode"}, ids.out).out,
            "{\"text\":\"<end>ab a<end>\"}\n{\"text\":\"<end>b<end>\"}\n");
  EXPECT_EQ(tokenize({"--decode", "--no-special"}, "[4, 2, 3, 0]").out, "{\"text\":\"ab a\"}\n");
  EXPECT_EQ(tokenize({"--no-special"}, "\"ab\"").out, "{\"ids\":[2]}\n");
}

TEST_F(TokenizeVerb, NamesTheLineThatItCannotRead) {
  const auto error = [&](std::vector<std::string> flags, const std::string& input) {
    const ProgramResult result = tokenize(std::move(flags), input);
    EXPECT_EQ(result.status, 1);
    return result.err;
  };
  EXPECT_EQ(error({}, "\"a\"\n{\"txt\": 1}\n"),
            "error: standard input: line 2: a string or {\"text\": \"...\"} is expected, is an "
            "object without \"text\"\n");
  EXPECT_EQ(error({}, "\n\"a\xFF\"\n").substr(0, 48),
            "error: standard input: line 2: not JSON at byte ");
  EXPECT_EQ(error({"--decode"}, "[0]\n[0, 5]\n"),
            "error: standard input: line 2: tokenizer: ids[1] is 5, which is no token; " +
                (folder_.path() / "tokenizer.json").string() + " has ids 0 to 4\n");
  EXPECT_EQ(error({"--decode"}, "[-1]"),
            "error: standard input: line 1: ids[0] must be a token id, is -1\n");
  EXPECT_EQ(error({"--input", "/no/such/file"}, ""), "error: /no/such/file: cannot open\n");
}

TEST_F(TokenizeVerb, HelpShowsExamples) {
  const ProgramResult help = test::run_wick({"tokenize", "--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_NE(help.out.find("Examples:"), std::string::npos);
  EXPECT_NE(help.out.find("--no-special"), std::string::npos);
}

}  // namespace
}  // namespace wick
