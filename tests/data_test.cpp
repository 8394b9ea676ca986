// Records, masks, counts and batches.
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/base/file.h"
#include "wick/base/log.h"
#include "wick/data/batcher.h"
#include "wick/data/dataset.h"
#include "wick/data/share.h"

namespace wick {
namespace {

using test::message_of;

class DataTest : public testing::Test {
 protected:
  DataTest() {
    test::TinyModelOptions options;
    options.weights = false;
    test::write_tiny_model(folder_.path(), options);
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::from_folder(folder_.path()));
  }

  std::filesystem::path write(const std::string& name, const std::string& text) {
    write_text_atomically(folder_.path() / name, text);
    return folder_.path() / name;
  }
  // The error of reading a file with these contents, the folder's name left out.
  std::string error_of(const std::string& contents, const DatasetOptions& options = {}) {
    const auto path = write("d.jsonl", contents);
    std::string message = message_of([&] { read_dataset(path, *tokenizer_, options); });
    const std::string prefix = folder_.path().string() + "/";
    EXPECT_EQ(message.rfind(prefix, 0), 0U) << message;
    return message.substr(prefix.size());
  }
  // The learnt tokens as text, special tokens shown.
  std::string learnt(const Sample& sample) const {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < sample.ids.size(); ++i) {
      if (sample.is_target[i] != 0) {
        ids.push_back(sample.ids[i]);
      }
    }
    return tokenizer_->decode(ids, false);
  }
  Sample encode(const std::string& json, TrainOn train_on = TrainOn::completion) const {
    return encode_record(*tokenizer_, parse_record(json, "test"), train_on);
  }

  test::TemporaryFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(DataTest, BadLinesAreNamedByFileAndLine) {
  const std::string good = "{\"text\": \"a b\"}\n";
  EXPECT_EQ(error_of(good + "\n{\"text\": \"a\n"),
            "d.jsonl:3: not JSON at column 12 (one whole record a line is wanted)");
  EXPECT_EQ(error_of(good + "{\"text\": \"a\xC3(\"}\n"), "d.jsonl:2: not UTF-8 at column 12");
  EXPECT_EQ(error_of("{\"text\": 1e999}\n"), "d.jsonl:1: holds a number that is out of range");
  EXPECT_EQ(error_of("{\"text\": 5}\n"), "d.jsonl:1: \"text\" must be a string, it is: number");
  EXPECT_EQ(error_of("{\"prompt\": \"a\", \"completion\": null}\n"),
            "d.jsonl:1: \"completion\" must be a string, it is: null");
  EXPECT_EQ(
      error_of("{\"prompt\": \"a\", \"answer\": \"b\"}\n"),
      "d.jsonl:1: a record must be {\"text\"}, {\"prompt\", \"completion\"} or {\"messages\": "
      "[{\"role\", \"content\"}]}; this one has \"answer\", \"prompt\"");
  EXPECT_EQ(error_of("[1]\n"),
            "d.jsonl:1: a record must be a JSON object like {\"text\"}, {\"prompt\", "
            "\"completion\"} or {\"messages\": [{\"role\", \"content\"}]}, it is: array");
  EXPECT_EQ(error_of("{\"messages\": []}\n"),
            "d.jsonl:1: \"messages\" must be a list of at least one message");
  EXPECT_EQ(error_of("{\"messages\": [{\"role\": \"user\"}]}\n"),
            "d.jsonl:1: message 1 must be an object with \"role\" and \"content\"");
  EXPECT_EQ(error_of("{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}\n"),
            "d.jsonl:1: message 1: \"content\" must be a string, it is: array");
  EXPECT_EQ(error_of("{\"messages\": [{\"role\": \"a\\nb\", \"content\": \"\"}]}\n"),
            "d.jsonl:1: message 1: \"role\" must be one line that is not empty");
}

TEST_F(DataTest, FilesWithoutUseAreErrors) {
  EXPECT_EQ(error_of(" \n\n"),
            "d.jsonl: no records; a line must be a JSON object such as {\"prompt\": \"...\", "
            "\"completion\": \"...\"}");
  EXPECT_EQ(error_of(""),
            "d.jsonl: no records; a line must be a JSON object such as {\"prompt\": \"...\", "
            "\"completion\": \"...\"}");
  EXPECT_EQ(error_of("{\"prompt\": \"abc\", \"completion\": \"\"}\n"),
            "d.jsonl: none of 1 records has a token to learn (0 were cut to 2048 tokens); "
            "completions or assistant turns are missing, or --max-length is too small");
  EXPECT_EQ(message_of([&] { read_dataset("/no/such.jsonl", *tokenizer_, {}); }),
            "/no/such.jsonl: cannot open: No such file or directory");
  EXPECT_EQ(message_of([&] { find_data_files("/no/such"); }), "/no/such: no such file or folder");
  EXPECT_EQ(message_of([&] { find_data_files(folder_.path()); }),
            folder_.path().string() + ": the folder has no train.jsonl");
}

TEST_F(DataTest, AByteOrderMarkAndCarriageReturnsAreSkipped) {
  const auto path = write("d.jsonl", "\xEF\xBB\xBF{\"text\": \"ab\"}\r\n\r\n{\"text\": \"cd\"}");
  EXPECT_EQ(read_dataset(path, *tokenizer_, {}).samples.size(), 2U);
}

TEST_F(DataTest, ACompletionAndTheEndAreLearnt) {
  const Sample sample = encode(R"({"prompt": "ab", "completion": " c"})");
  EXPECT_EQ(sample.ids, (std::vector<int32_t>{'a', 'b', ' ', 'c', test::kTinyEndOfText}));
  EXPECT_EQ(sample.is_target, (std::vector<uint8_t>{0, 0, 1, 1, 1}));
}

TEST_F(DataTest, ATextIsLearntButForItsFirstToken) {
  EXPECT_EQ(learnt(encode(R"({"text": "hello"})")), "ello<|endoftext|>");
}

TEST_F(DataTest, PromptsAreLearntWhenAsked) {
  EXPECT_EQ(learnt(encode(R"({"prompt": "ab", "completion": " c"})", TrainOn::all)),
            "b c<|endoftext|>");
}

TEST_F(DataTest, OnlyAssistantTurnsAreLearnt) {
  const std::string json =
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U1"},)"
      R"({"role": "assistant", "content": "A1"}, {"role": "user", "content": "U2"},)"
      R"({"role": "assistant", "content": "A2"}, {"role": "user", "content": "bye"}]})";
  const Sample sample = encode(json);
  EXPECT_EQ(learnt(sample), "A1<|im_end|>A2<|im_end|><|endoftext|>");
  EXPECT_EQ(tokenizer_->decode(sample.ids, false),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n"
            "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n"
            "<|im_start|>assistant\nA2<|im_end|><|endoftext|>");
  EXPECT_EQ(prompt_of(parse_record(json, "test")),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n"
            "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST_F(DataTest, AForeignTemplateIsNotPassedOverInSilence) {
  write("tokenizer_config.json",
        R"({"eos_token": "<|endoftext|>", "chat_template": "{{ '[INST]' }}"})");
  const Tokenizer tokenizer = Tokenizer::from_folder(folder_.path());
  const auto path = write(
      "d.jsonl", R"({"messages": [{"role": "assistant", "content": "A"}]})" + std::string("\n"));
  std::string said;
  const LogSink before = set_log_sink([&](LogLevel, std::string_view line) { said += line; });
  read_dataset(path, tokenizer, {});
  set_log_sink(before);
  EXPECT_EQ(said, path.string() +
                      ": chats are rendered as ChatML; the model's own chat template is another, "
                      "and this version does not run it");
}

TEST_F(DataTest, WhatIsCutOrSkippedIsCounted) {
  const auto path = write("d.jsonl",
                          "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n"
                          "{\"prompt\": \"ab\", \"completion\": \"cdefgh\"}\n"
                          "{\"prompt\": \"abcdefgh\", \"completion\": \"i\"}\n"
                          "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n");
  DatasetOptions options;
  options.max_length = 6;
  const Dataset dataset = read_dataset(path, *tokenizer_, options);
  EXPECT_EQ(dataset.records, 4);
  EXPECT_EQ(dataset.cut, 2);
  EXPECT_EQ(dataset.skipped, 2);
  ASSERT_EQ(dataset.samples.size(), 2U);
  EXPECT_EQ(learnt(dataset.samples[1]), "cdef");
  EXPECT_EQ(dataset.tokens, 5 + 6);
  EXPECT_EQ(dataset.target_tokens, 3 + 4);
  EXPECT_EQ(dataset.summary(options),
            "2 records, 11 tokens, 7 of them learnt; 2 cut to 6 tokens; 2 skipped: no token to "
            "learn (or none left after the cut)");
}

TEST_F(DataTest, ASplitLosesNothing) {
  std::string lines;
  for (char c = 'a'; c <= 'z'; ++c) {
    lines += std::string("{\"text\": \"") + c + c + "\"}\n";
  }
  Dataset train = read_dataset(write("d.jsonl", lines), *tokenizer_, {});
  const Dataset valid = split_off(train, 0.1, 7);
  EXPECT_EQ(valid.samples.size(), 3U);
  EXPECT_EQ(train.samples.size(), 23U);
  std::set<int32_t> seen;
  for (const Dataset* part : {static_cast<const Dataset*>(&train), &valid}) {
    for (const Sample& sample : part->samples) {
      seen.insert(sample.ids[0]);
    }
  }
  EXPECT_EQ(seen.size(), 26U);
  EXPECT_EQ(message_of([&] { split_off(train, 1.5, 7); }),
            "valid fraction: 1.5 is not between 0 and 1");
}

TEST_F(DataTest, AFolderHoldsNamedSplits) {
  write("train.jsonl", "{}");
  write("valid.jsonl", "{}");
  const DataFiles files = find_data_files(folder_.path());
  EXPECT_EQ(files.train.filename(), "train.jsonl");
  EXPECT_EQ(files.valid->filename(), "valid.jsonl");
  EXPECT_FALSE(files.test.has_value());
}

// Samples whose tokens are all the sample's number; sample i has i % 5 + 2 tokens.
std::vector<Sample> numbered_samples(int count) {
  std::vector<Sample> samples;
  for (int i = 0; i < count; ++i) {
    const auto length = static_cast<size_t>(i % 5 + 2);
    Sample sample{std::vector<int32_t>(length, i), std::vector<uint8_t>(length, 1)};
    sample.is_target[0] = 0;
    samples.push_back(std::move(sample));
  }
  return samples;
}

std::vector<int32_t> first_ids(const std::vector<MicroBatch>& step) {
  std::vector<int32_t> ids;
  for (const MicroBatch& batch : step) {
    for (const auto& input : batch.inputs) {
      ids.push_back(input[0]);
    }
  }
  return ids;
}

TEST(Batcher, RowsPredictTheTokenAfterThem) {
  MicroBatch batch;
  batch.add({{10, 11, 12}, {0, 0, 1}});
  batch.add({{20, 21, 22, 23}, {0, 1, 0, 1}});
  EXPECT_EQ(batch.inputs, (std::vector<std::vector<int32_t>>{{10, 11}, {20, 21, 22}}));
  EXPECT_EQ(batch.rows, 5);
  EXPECT_EQ(batch.target_rows, (std::vector<int32_t>{1, 2, 4}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{12, 21, 23}));
}

TEST(Batcher, EveryEpochTakesEachSampleOnceInItsOwnOrder) {
  const std::vector<Sample> samples = numbered_samples(23);
  for (const int64_t tokens : {0, 9}) {
    Batcher batcher(samples,
                    {.batch_size = 3, .batch_tokens = tokens, .accumulation = 2, .seed = 5});
    std::vector<std::vector<int32_t>> orders;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int32_t>& order = orders.emplace_back();
      const int64_t steps = batcher.steps_in_epoch(epoch);
      for (int64_t step = 0; step < steps; ++step) {
        const std::vector<MicroBatch> batches = batcher.next_step();
        for (const MicroBatch& batch : batches) {
          EXPECT_TRUE(tokens == 0 ? batch.inputs.size() <= 3 : batch.rows <= 9);
        }
        const std::vector<int32_t> ids = first_ids(batches);
        order.insert(order.end(), ids.begin(), ids.end());
      }
      EXPECT_EQ(batcher.cursor(), (Cursor{epoch, 23}));
      EXPECT_EQ(std::set<int32_t>(order.begin(), order.end()).size(), 23U);
      EXPECT_EQ(order.size(), 23U);
    }
    EXPECT_NE(orders[0], orders[1]);
    EXPECT_NE(orders[1], orders[2]);
  }
}

TEST(Batcher, GoesOnFromItsCursor) {
  const std::vector<Sample> samples = numbered_samples(10);
  const BatchOptions options{.batch_size = 2, .accumulation = 2, .seed = 9};
  Batcher whole(samples, options);
  for (int i = 0; i < 7; ++i) {
    Batcher resumed(samples, options);
    resumed.seek(whole.cursor());
    EXPECT_EQ(first_ids(whole.next_step()), first_ids(resumed.next_step()));
  }
}

TEST(Batcher, RefusesWhatCannotBe) {
  const std::vector<Sample> samples = numbered_samples(2);
  EXPECT_EQ(message_of([&] { Batcher(samples, {.batch_size = 0}); }),
            "batch size: 0; at least 1 is needed");
  EXPECT_EQ(message_of([&] { Batcher(samples, {.accumulation = 0}); }),
            "gradient accumulation: 0; at least 1 is needed");
  EXPECT_EQ(message_of([&] {
              Batcher(samples, {}).seek({0, 3});
            }),
            "batches: position 3 of epoch 0 lies outside 2 samples");
}

TEST(Batcher, PacksInOrderWithinTheBudget) {
  const std::vector<Sample> samples = numbered_samples(10);  // rows 1 2 3 4 5 1 2 3 4 5
  const std::vector<MicroBatch> batches = pack_in_order(samples, 6);
  std::vector<int64_t> rows;
  rows.reserve(batches.size());
  for (const MicroBatch& batch : batches) {
    rows.push_back(batch.rows);
  }
  EXPECT_EQ(rows, (std::vector<int64_t>{6, 4, 6, 5, 4, 5}));
}

// Sequences of these lengths, each token learnt and unlike any other.
MicroBatch batch_of(const std::vector<int>& lengths, int32_t first_id) {
  MicroBatch batch;
  for (const int length : lengths) {
    Sample sample;
    for (int i = 0; i <= length; ++i) {
      sample.ids.push_back(first_id++);
      sample.is_target.push_back(1);
    }
    batch.add(sample);
  }
  return batch;
}

// Each input token with the one to predict from it.
std::multiset<std::pair<int32_t, int32_t>> lessons_of(const MicroBatch& batch) {
  std::vector<int32_t> row_ids;
  for (const std::vector<int32_t>& input : batch.inputs) {
    row_ids.insert(row_ids.end(), input.begin(), input.end());
  }
  EXPECT_EQ(static_cast<int64_t>(row_ids.size()), batch.rows);
  std::multiset<std::pair<int32_t, int32_t>> lessons;
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    lessons.emplace(row_ids.at(batch.target_rows[i]), batch.targets[i]);
  }
  return lessons;
}

TEST(ShareOfStep, TheSharesTogetherAreTheStep) {
  const std::vector<MicroBatch> step = {batch_of({3, 1, 4, 1, 5}, 0), batch_of({9}, 100),
                                        batch_of({2, 6, 5}, 200)};
  std::multiset<std::pair<int32_t, int32_t>> all;
  for (const MicroBatch& batch : step) {
    all.merge(lessons_of(batch));
  }
  for (int size = 1; size <= 7; ++size) {
    std::multiset<std::pair<int32_t, int32_t>> shared;
    std::set<std::pair<int64_t, int>> numbers;
    for (int rank = 0; rank < size; ++rank) {
      for (const StepPart& part : share_of_step(step, rank, size)) {
        shared.merge(lessons_of(part.batch));
        EXPECT_GT(part.batch.rows, 0);
        EXPECT_TRUE(numbers.emplace(part.micro_batch, part.part).second);
      }
    }
    EXPECT_EQ(shared, all) << size;
  }
}

TEST(ShareOfStep, WholeMicroBatchesAreDealtAndTheRestIsCutEvenly) {
  const std::vector<MicroBatch> step = {batch_of({4, 4}, 0), batch_of({4, 4}, 20),
                                        batch_of({2, 2, 2, 6}, 40)};
  for (int rank = 0; rank < 2; ++rank) {
    const std::vector<StepPart> share = share_of_step(step, rank, 2);
    ASSERT_EQ(share.size(), 2U);
    EXPECT_EQ(share[0].batch.inputs, step[static_cast<size_t>(rank)].inputs);
    EXPECT_EQ(share[0].part, 0);
    EXPECT_EQ(share[1].micro_batch, 2);
    EXPECT_EQ(share[1].batch.rows, 6);
  }
}

}  // namespace
}  // namespace wick
