// The decoder against recorded values: logits, loss and the gradient of every weight from PyTorch
// (tests/golden), and real models where they are present.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/host_tensor.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/io/safetensors.h"
#include "wick/io/weight_source.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

using test::relative_difference;
using test::to_host;
using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;

std::unique_ptr<Decoder> open_decoder(Backend& backend, const std::filesystem::path& folder) {
  return std::make_unique<Decoder>(backend, parse_model_config(folder / "config.json"),
                                   *open_weights(folder));
}

Ids read_ids(const SafetensorsFile& file, const std::string& name) {
  const std::span<const std::byte> bytes = file.bytes(name);
  Ids ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), bytes.size());
  return ids;
}

// The sequences of a recorded family, and their targets: label -100 is none.
struct Recorded {
  explicit Recorded(const SafetensorsFile& file) {
    int32_t begin = 0;
    for (const char* n : {"0", "1"}) {
      const Ids labels = read_ids(file, std::string("labels.") + n);
      sequences.push_back(read_ids(file, std::string("ids.") + n));
      for (size_t i = 1; i < labels.size(); ++i) {
        if (labels[i] >= 0) {
          rows.push_back(begin + static_cast<int32_t>(i) - 1);
          targets.push_back(labels[i]);
        }
      }
      begin += static_cast<int32_t>(labels.size());
    }
  }
  std::vector<Ids> sequences;
  Ids rows, targets;
};

class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder_ =
      std::filesystem::path(WICK_SOURCE_DIR) / "tests/golden" / GetParam();
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
  std::unique_ptr<Decoder> decoder_ = open_decoder(*backend_, folder_);
  SafetensorsFile golden_{folder_ / "golden.safetensors"};
  Recorded recorded_{golden_};
};

TEST_P(GoldenTest, LogitsAreThoseOfTransformers) {
  const TokenBatch batch = make_token_batch(*backend_, recorded_.sequences);
  const Tensor logits = decoder_->logits(decoder_->hidden(nullptr, batch, {}).value);
  Floats expected = golden_.floats("logits.base.0");
  const Floats second = golden_.floats("logits.base.1");
  expected.insert(expected.end(), second.begin(), second.end());
  EXPECT_LT(relative_difference(to_host(*backend_, logits), expected), 1e-5);
}

TEST_P(GoldenTest, LossAndTheGradientOfEveryWeightAreThoseOfTransformers) {
  decoder_->train_all_weights();
  const float scale = 1.0F / static_cast<float>(recorded_.rows.size());
  Tape tape(*backend_);
  const Var hidden = decoder_->hidden(&tape, make_token_batch(*backend_, recorded_.sequences), {});
  const double sum = decoder_->loss(&tape, hidden, {recorded_.rows, recorded_.targets}, scale, {});
  tape.backward();
  EXPECT_NEAR(sum * scale, golden_.floats("loss.base")[0], 1e-5);
  for (const Parameter* parameter : decoder_->parameters()) {
    EXPECT_LT(relative_difference(to_host(*backend_, parameter->grad),
                                  golden_.floats("gradient." + parameter->name)),
              5e-5)
        << parameter->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest,
                         testing::Values("llama", "llama2", "mistral", "qwen2", "qwen3"),
                         [](const auto& test) { return test.param; });

// ---- models that are not part of the project

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

Floats flattened(const nlohmann::json& rows) {
  Floats all;
  for (const auto& row : rows) {
    const Floats values = row.get<Floats>();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

double largest_gap(const Floats& a, const Floats& b) {
  EXPECT_EQ(a.size(), b.size());
  double gap = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    gap = std::max(gap, static_cast<double>(std::abs(a[i] - b[i])));
  }
  return gap;
}

class RandomModelTest : public testing::TestWithParam<std::string> {};

TEST_P(RandomModelTest, LogitsAreThoseOfAnIndependentForward) {
  const std::string relative = "models/tiny-random-hf/" + GetParam();
  WICK_REQUIRE_DATA(relative);
  const std::filesystem::path folder = test::data_folder() / relative;
  const nlohmann::json golden = read_json(folder / "golden.json");
  const auto backend = make_backend("cpu");
  const std::unique_ptr<Decoder> decoder = open_decoder(*backend, folder);
  const Ids ids = golden.at("ids").get<Ids>();
  const TokenBatch batch = make_token_batch(*backend, std::span(&ids, 1));
  const Floats logits =
      to_host(*backend, decoder->logits(decoder->hidden(nullptr, batch, {}).value));
  EXPECT_LT(largest_gap(logits, flattened(golden.at("logits"))), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Folders, RandomModelTest,
                         testing::Values("tiny_llama3", "tiny_mistral", "tiny_qwen3"),
                         [](const auto& test) { return test.param; });

class StoriesTest : public testing::Test {
 protected:
  void SetUp() override {
    WICK_REQUIRE_DATA("models/stories260K-hf");
    const std::filesystem::path folder = test::data_folder() / "models/stories260K-hf";
    golden_ = read_json(folder / "golden.json");
    decoder_ = open_decoder(*backend_, folder);
  }
  Floats logits(const TokenBatch& batch, KvCache* cache) {
    return to_host(*backend_, decoder_->logits(decoder_->hidden(nullptr, batch, {}, cache).value));
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
  std::unique_ptr<Decoder> decoder_;
  nlohmann::json golden_;
};

TEST_F(StoriesTest, LogitsAreThoseRecorded) {
  const Ids ids = golden_.at("first16_ids").get<Ids>();
  const TokenBatch batch = make_token_batch(*backend_, std::span(&ids, 1));
  EXPECT_LT(largest_gap(logits(batch, nullptr), flattened(golden_.at("logits_first16"))), 1e-4);
}

TEST_F(StoriesTest, GreedyDecodingGivesTheRecordedIds) {
  const Ids expected = golden_.at("greedy_ids").get<Ids>();
  Ids ids = golden_.at("prompt_ids").get<Ids>();
  KvCache cache = decoder_->make_cache(256);
  while (ids.size() < expected.size()) {
    const std::span<const int32_t> next = std::span(ids).subspan(cache.length());
    const Floats row = logits(make_next_batch(*backend_, next, cache.length()), &cache);
    const auto last = row.end() - decoder_->config().vocab_size;
    ids.push_back(static_cast<int32_t>(std::max_element(last, row.end()) - last));
  }
  EXPECT_EQ(ids, expected);
}

}  // namespace
}  // namespace wick
