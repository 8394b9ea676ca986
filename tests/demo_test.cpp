// The demo's data and base model: what `./run demo` claims rests on these being what they say.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/data/masking.h"
#include "wick/data/records.h"
#include "wick/models/bundle.h"
#include "wick/models/model_config.h"
#include "wick/text/tokenizer.h"
#include "wick/train/evaluate.h"

namespace wick {
namespace {

namespace fs = std::filesystem;

const fs::path kDemo = fs::path(WICK_SOURCE_DIR) / "demo";

std::string read_text(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::vector<Record> read_split(const char* name) {
  RecordReader reader(kDemo / "data" / name);
  std::vector<Record> records;
  while (std::optional<Record> record = reader.next()) {
    EXPECT_EQ(record->form, Record::Form::completion) << reader.where();
    records.push_back(std::move(*record));
  }
  return records;
}

// Words by spaces and punctuation, every digit a word.
std::set<std::string> words_of(const std::string& text) {
  std::set<std::string> words;
  std::string word;
  for (const char c : text + " ") {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
      word += c;
      continue;
    }
    if (!word.empty()) {
      words.insert(word);
      word.clear();
    }
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
      words.insert(std::string(1, c));
    }
  }
  return words;
}

TEST(DemoData, HasTheNumberOfRecordsThatTheReadmeStates) {
  EXPECT_EQ(read_split("train.jsonl").size(), 4000U);
  EXPECT_EQ(read_split("valid.jsonl").size(), 100U);
  EXPECT_EQ(read_split("test.jsonl").size(), 200U);
}

TEST(DemoData, HeldOutRecordsAreInNoOtherSplit) {
  std::set<std::string> prompts;
  std::set<std::string> queries;
  for (const Record& record : read_split("train.jsonl")) {
    EXPECT_TRUE(prompts.insert(record.prompt).second) << record.prompt;
    queries.insert(record.completion);
  }
  for (const char* split : {"valid.jsonl", "test.jsonl"}) {
    for (const Record& record : read_split(split)) {
      EXPECT_TRUE(prompts.insert(record.prompt).second) << split << ": " << record.prompt;
      EXPECT_TRUE(queries.insert(record.completion).second) << split << ": " << record.completion;
    }
  }
}

TEST(DemoData, HeldOutRecordsUseNoWordThatTrainingDoesNot) {
  std::set<std::string> known;
  for (const Record& record : read_split("train.jsonl")) {
    known.merge(words_of(record.prompt));
  }
  for (const Record& record : read_split("test.jsonl")) {
    for (const std::string& word : words_of(record.prompt)) {
      EXPECT_TRUE(known.contains(word)) << word << " of: " << record.prompt;
    }
  }
}

TEST(DemoData, IsWhatTheScriptWrites) {
  if (std::system("python3 -c pass 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3 is absent: make_data.py cannot be run";
  }
  const test::TemporaryFolder folder;
  const std::string command = "python3 '" + (kDemo / "make_data.py").string() + "' '" +
                              folder.path().string() + "' > /dev/null";
  ASSERT_EQ(std::system(command.c_str()), 0);
  for (const char* split : {"train.jsonl", "valid.jsonl", "test.jsonl"}) {
    EXPECT_TRUE(read_text(folder.path() / split) == read_text(kDemo / "data" / split)) << split;
  }
}

TEST(DemoBase, IsASmallModelWithItsOwnTokenizer) {
  const ModelConfig config = parse_model_config(kDemo / "base" / "config.json");
  const Tokenizer tokenizer = Tokenizer::from_folder(kDemo / "base");
  EXPECT_EQ(config.vocab_size, tokenizer.vocab_size());
  ASSERT_EQ(config.eos_ids.size(), 1U);
  EXPECT_EQ(tokenizer.eos_id(), config.eos_ids[0]);
  uintmax_t bytes = 0;
  for (const auto& file : fs::recursive_directory_iterator(kDemo / "base")) {
    bytes += file.is_regular_file() ? file.file_size() : 0;
  }
  EXPECT_LE(bytes, uintmax_t{16} << 20);
}

TEST(DemoBase, HoldsTrainedWeights) {
  const auto backend = make_backend("cpu");
  const Bundle base = open_bundle(*backend, kDemo / "base");
  for (const Parameter* parameter : base.decoder->parameters()) {
    const bool matrix = parameter->value.shape().rank() == 2;
    EXPECT_EQ(parameter->value.dtype(), matrix ? DType::bf16 : DType::f32) << parameter->name;
  }
  Record record;
  record.text =
      "She was in the house with her mother and the old prince.\n\n"
      "name: Bruno\ncity: Oslo\nage: 417\nThe city is Oslo.\nThe age is 417.";
  const std::vector<Sample> samples = {encode_record(base.tokenizer, record, TrainOn::all)};
  // Guessing costs ln(3072) = 8.03 a token.
  EXPECT_LT(evaluate(*base.decoder, samples).loss, 4.0);
}

TEST(DemoBase, EncodesEveryDigitAloneAndEveryRecordWhole) {
  const Tokenizer tokenizer = Tokenizer::from_folder(kDemo / "base");
  const std::vector<int32_t> digits = tokenizer.encode("2048", false);
  EXPECT_EQ(digits.size(), 4U);
  for (const Record& record : read_split("test.jsonl")) {
    const Sample sample = encode_record(tokenizer, record, TrainOn::completion);
    EXPECT_LE(sample.ids.size(), 96U) << record.prompt;
    EXPECT_EQ(tokenizer.decode(sample.ids, true), record.prompt + record.completion);
    EXPECT_EQ(sample.ids.back(), tokenizer.eos_id());
  }
}

}  // namespace
}  // namespace wick
