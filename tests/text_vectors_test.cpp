// Every recorded vector of the public tokenizers: ids, ids with special tokens, decoded text.
#include <gtest/gtest.h>

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include <sstream>

#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/text/tokenizer.h"

namespace wick {
namespace {

using nlohmann::json;

std::filesystem::path tokenizers() {
  return test::data_folder() / "tokenizers";
}

class Vectors : public testing::TestWithParam<const char*> {};

TEST_P(Vectors, EveryIdAndEveryDecodedTextIsEqual) {
  const std::string name = GetParam();
  WICK_REQUIRE_DATA("tokenizers/vectors/" + name + ".json");
  const json vectors = json::parse(read_text(tokenizers() / "vectors" / (name + ".json")));
  const Tokenizer tokenizer = Tokenizer::from_folder(tokenizers() / name);
  ASSERT_FALSE(vectors["cases"].empty());
  for (const json& entry : vectors["cases"]) {
    const auto text = entry["text"].get<std::string>();
    const auto ids = entry["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text, false), ids) << name << ": " << text;
    EXPECT_EQ(tokenizer.encode(text, true), entry["ids_special"].get<std::vector<int32_t>>())
        << name << ": " << text;
    // The recording gives null for no ids.
    const auto decoded = [&](const char* key) {
      return entry[key].is_null() ? std::string() : entry[key].get<std::string>();
    };
    EXPECT_EQ(tokenizer.decode(ids, false), decoded("decoded")) << name << ": " << text;
    EXPECT_EQ(tokenizer.decode(ids, true), decoded("decoded_skip")) << name << ": " << text;

    StreamingDecoder stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) {
      streamed += stream.push(id);
    }
    EXPECT_EQ(streamed + stream.finish(), decoded("decoded")) << name << ": " << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Vectors,
                         testing::Values("qwen2.5", "llama3.2", "llama2", "mistral-v0.3",
                                         "phi-3-mini", "gpt2", "bert-base-uncased",
                                         "all-MiniLM-L6-v2", "e5-small", "all-mpnet-base-v2",
                                         "minimind-6400"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !std::isalnum(c); },
                               '_');
                           return name;
                         });

struct Pair {
  const char* texts;      // of llama.cpp's vocabulary tests
  const char* tokenizer;  // the same vocabulary as tokenizer.json
};

class LlamaCppPairs : public testing::TestWithParam<Pair> {};

TEST_P(LlamaCppPairs, EveryIdIsEqual) {
  const auto [texts, name] = GetParam();
  const auto base = tokenizers() / "llamacpp" / fmt::format("ggml-vocab-{}.gguf", texts);
  WICK_REQUIRE_DATA("tokenizers/llamacpp/ggml-vocab-" + std::string(texts) + ".gguf.inp");
  const Tokenizer tokenizer = Tokenizer::from_folder(tokenizers() / name);
  const std::string input = read_text(base.string() + ".inp");
  std::istringstream expected(read_text(base.string() + ".out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  size_t begin = 0;
  size_t count = 0;
  for (std::string line; std::getline(expected, line); ++count) {
    const size_t end = input.find(separator, begin);
    ASSERT_NE(end, std::string::npos);
    const std::string text = input.substr(begin, end - begin);
    begin = end + separator.size();
    std::istringstream numbers(line);
    const std::vector<int32_t> ids{std::istream_iterator<int32_t>(numbers), {}};
    EXPECT_EQ(tokenizer.encode(text, false), ids) << texts << ": " << text;
  }
  EXPECT_GE(count, 40U);
}

INSTANTIATE_TEST_SUITE_P(Models, LlamaCppPairs,
                         testing::Values(Pair{"qwen2", "qwen2.5"}, Pair{"llama-bpe", "llama3.2"},
                                         Pair{"gpt-2", "gpt2"}, Pair{"phi-3", "phi-3-mini"},
                                         Pair{"llama-spm", "llama2"},
                                         Pair{"bert-bge", "bert-base-uncased"}),
                         [](const auto& param) {
                           std::string name = param.param.texts;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace wick
