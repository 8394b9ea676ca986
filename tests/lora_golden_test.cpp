// Adapters that PEFT wrote give PEFT's logits, loss and gradients here; merged gives the same as
// attached.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/lora/merge.h"
#include "wick/lora/peft_io.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

using test::golden_ids;
using test::relative_difference;
using test::to_host;

constexpr int kSequences = 2;

class LoraGolden : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder() const { return test::golden_folder(GetParam()); }
  Adapter adapter() const { return read_peft(folder() / "adapter"); }
  std::vector<float> recorded(const std::string& name) const { return golden_.floats(name); }

  std::vector<float> logits(int sequence) {
    const std::vector<std::vector<int32_t>> ids = {
        golden_ids(golden_, "ids." + std::to_string(sequence))};
    const TokenBatch batch = make_token_batch(*backend_, ids);
    return to_host(*backend_, decoder_.logits(decoder_.hidden(nullptr, batch, {}).value));
  }
  void expect_logits(const std::string& which, double tolerance) {
    for (int i = 0; i < kSequences; ++i) {
      const std::string name = "logits." + which + "." + std::to_string(i);
      EXPECT_LT(relative_difference(logits(i), recorded(name)), tolerance) << name;
    }
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 2});
  SafetensorsFile golden_{folder() / "golden.safetensors"};
  std::unique_ptr<WeightSource> weights_ = open_weights(folder());
  Decoder decoder_{*backend_, parse_model_config(folder() / "config.json"), *weights_};
};

TEST_P(LoraGolden, AttachedGivesPeftsLogits) {
  expect_logits("base", 1e-5);
  AttachedAdapter attached = attach(*backend_, decoder_.linears(), adapter(), Trainable::no);
  expect_logits("adapter", 1e-5);
  attached.detach();
  expect_logits("base", 1e-5);
}

TEST_P(LoraGolden, GradientsArePefts) {
  const AttachedAdapter attached = attach(*backend_, decoder_.linears(), adapter(), Trainable::yes);
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> rows;
  std::vector<int32_t> targets;
  int32_t begin = 0;
  for (int i = 0; i < kSequences; ++i) {
    ids.push_back(golden_ids(golden_, "ids." + std::to_string(i)));
    const std::vector<int32_t> labels = golden_ids(golden_, "labels." + std::to_string(i));
    for (size_t t = 1; t < labels.size(); ++t) {
      if (labels[t] >= 0) {
        rows.push_back(begin + static_cast<int32_t>(t) - 1);
        targets.push_back(labels[t]);
      }
    }
    begin += static_cast<int32_t>(labels.size());
  }
  const auto count = static_cast<double>(targets.size());
  Tape tape(*backend_);
  const Var hidden = decoder_.hidden(&tape, make_token_batch(*backend_, ids), {});
  const double sum =
      decoder_.loss(&tape, hidden, {rows, targets}, static_cast<float>(1.0 / count), {});
  tape.backward();
  EXPECT_NEAR(sum / count, recorded("loss.adapter")[0], 1e-5);
  for (const AttachedAdapter::Segment& segment : attached.segments) {
    const std::vector<float> gradient =
        to_host(*backend_, attached.grads.part(segment.begin, segment.shape));
    EXPECT_LT(relative_difference(gradient, recorded("gradient." + segment.name)), 2e-5)
        << segment.name;
  }
}

TEST_P(LoraGolden, EveryRecordedGradientHasItsFactor) {
  const AttachedAdapter attached = attach(*backend_, decoder_.linears(), adapter(), Trainable::no);
  size_t recorded_factors = 0;
  for (const auto& [name, entry] : golden_.entries()) {
    recorded_factors += name.find(".lora_") != std::string::npos ? 1 : 0;
  }
  EXPECT_EQ(attached.segments.size(), recorded_factors);
}

TEST_P(LoraGolden, MergedGivesWhatAttachedGives) {
  const AttachedAdapter attached = attach(*backend_, decoder_.linears(), adapter(), Trainable::no);
  const std::vector<float> before = logits(0);
  for (LinearLayer* layer : attached.layers) {
    merge_into(*backend_, *layer, DType::f32);
    EXPECT_FALSE(layer->lora);
  }
  EXPECT_LT(relative_difference(logits(0), before), 1e-5);
}

TEST_P(LoraGolden, SavedHereAndReadAgainIsTheSameAdapter) {
  const test::TemporaryFolder temporary;
  const Adapter original = adapter();
  const AttachedAdapter attached = attach(*backend_, decoder_.linears(), original, Trainable::no);
  write_peft(temporary.path() / "copy", attached.to_adapter(*backend_));
  const Adapter copy = read_peft(temporary.path() / "copy");
  EXPECT_EQ(copy.config, original.config);
  ASSERT_EQ(copy.entries.size(), original.entries.size());
  for (size_t i = 0; i < copy.entries.size(); ++i) {
    EXPECT_EQ(copy.entries[i].module, original.entries[i].module);
    EXPECT_EQ(copy.entries[i].a, original.entries[i].a);
    EXPECT_EQ(copy.entries[i].b, original.entries[i].b);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LoraGolden, testing::ValuesIn(test::kGoldenFamilies),
                         [](const auto& which) { return which.param; });

}  // namespace
}  // namespace wick
