// Ten steps of LoRA training against PEFT and torch's AdamW, see tests/golden/README.md.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "wick/backend/registry.h"
#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"
#include "wick/train/optimizer.h"
#include "wick/train/step.h"

namespace wick {
namespace {

constexpr int kSequences = 4;

// Each sequence as a micro-batch of its own: a step weighs them by their target tokens.
std::vector<MicroBatch> read_sequences(const SafetensorsFile& recorded) {
  std::vector<MicroBatch> batches(kSequences);
  for (int i = 0; i < kSequences; ++i) {
    Sample sample;
    sample.ids = test::golden_ids(recorded, "ids." + std::to_string(i));
    for (const int32_t label : test::golden_ids(recorded, "labels." + std::to_string(i))) {
      sample.is_target.push_back(label >= 0 ? 1 : 0);
    }
    batches[i].add(sample);
  }
  return batches;
}

TEST(TrainGolden, TenStepsAreTorchs) {
  const std::filesystem::path folder = test::golden_folder("qwen2");
  const SafetensorsFile recorded(folder / "training.safetensors");
  const auto setting = [&](const char* name) { return std::stof(recorded.metadata().at(name)); };
  const auto backend = make_backend("cpu", {.threads = 2});
  const auto decoder = open_decoder(*backend, folder);
  const AttachedAdapter attached =
      attach(*backend, decoder->linears(), read_peft(folder / "adapter"), Trainable::yes);
  AdamW optimizer(
      *backend, attached.values, attached.grads,
      {{0, attached.values.elements(), 1.0F, setting("weight_decay")}},
      {setting("beta1"), setting("beta2"), setting("epsilon"), setting("max_grad_norm")});
  Alone alone;
  TrainStep train_step(*decoder, optimizer, 0, alone);

  const std::vector<MicroBatch> sequences = read_sequences(recorded);
  const std::vector<int32_t> order = test::golden_ids(recorded, "order");
  const std::vector<float> losses = recorded.floats("losses");
  const std::vector<float> norms = recorded.floats("gradient_norms");
  for (size_t step = 0; step < losses.size(); ++step) {
    const std::vector<MicroBatch> batches = {sequences.at(order[2 * step]),
                                             sequences.at(order[2 * step + 1])};
    const auto number = static_cast<int64_t>(step);
    const StepResult result =
        train_step.run(batches, number + 1, setting("learning_rate"), 2 * number);
    EXPECT_NEAR(result.loss_sum / static_cast<double>(result.target_tokens), losses[step], 1e-4)
        << step;
    EXPECT_NEAR(result.gradient_norm / norms[step], 1.0, 1e-4) << step;
  }
  for (const AttachedAdapter::Segment& segment : attached.segments) {
    EXPECT_LT(test::relative_difference(
                  test::to_host(*backend, attached.values.part(segment.begin, segment.shape)),
                  recorded.floats("trained." + segment.name)),
              1e-3)
        << segment.name;
  }
}

}  // namespace
}  // namespace wick
