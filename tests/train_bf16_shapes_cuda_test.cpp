// Ten training steps of models in the shapes that people train, in f32 and bf16 on a GPU, give the
// CPU's losses. The weights are random: nothing is downloaded.
//
// Takes minutes, nearly all of them the CPU's: ctest runs it with `-C long` alone.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/random_weights.h"
#include "tests/support/test_data.h"
#include "tests/support/training_comparison.h"
#include "wick/base/file.h"
#include "wick/base/random.h"

namespace wick {
namespace {

using test::Ids;
using test::Training;

constexpr int kSteps = 10;

struct Steps {
  int64_t sequences, length;
  std::string rate;
  bool measured_only = false;
};

struct Model {
  std::string sizes;  // of config.json
  std::vector<Steps> trainings;
};

const std::map<std::string, Model>& models() {
  static const std::map<std::string, Model> models = {
      {"qwen2.5-0.5b",
       {R"("hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
           "num_attention_heads": 14, "num_key_value_heads": 2)",
        {{1, 512, "2e-4"}, {1, 512, "1e-3"}, {4, 512, "2e-4"}, {4, 512, "1e-3", true}}}},
      {"qwen2.5-1.5b",
       {R"("hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
           "num_attention_heads": 12, "num_key_value_heads": 2)",
        {{1, 512, "2e-4"},
         {1, 512, "1e-3", true},
         {4, 512, "2e-4", true},
         {4, 512, "1e-3", true}}}},
  };
  return models;
}

// Of 32 kinds of tokens, the i-th with a share of about 1 / i, as words have in a text (Zipf). They
// say nothing of each other: what can be learnt is how often each comes, 3 of the 12 nats that a
// random model begins with remain. With more kinds ten steps at 2e-4 would hardly move the loss.
Ids zipf_ids(int64_t count, uint64_t stream) {
  constexpr double kKinds = 32;
  const Random random(3, stream);
  Ids ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(std::pow(kKinds + 1, double{random.uniform(i)})) - 1;
  }
  return ids;
}

Training training_of(const Steps& steps) {
  Training training;
  training.name = fmt::format("{}x{},{}", steps.sequences, steps.length, steps.rate);
  training.learning_rate = std::stof(steps.rate);
  training.measured_only = steps.measured_only;
  uint64_t stream = 0;
  for (int i = 0; i < kSteps; ++i) {
    std::vector<Ids>& step = training.steps.emplace_back();
    for (int64_t row = 0; row < steps.sequences; ++row) {
      step.push_back(zipf_ids(steps.length + 1, ++stream));
    }
  }
  return training;
}

class TrainingShapes : public testing::TestWithParam<std::string> {};

TEST_P(TrainingShapes, TenStepsGiveTheCpusLosses) {
  if (!test::has_cuda_device()) {
    GTEST_SKIP() << "no CUDA device answers here";
  }
  const Model& model = models().at(GetParam());
  const test::TemporaryFolder source;
  const std::filesystem::path config_json = source.path() / "config.json";
  write_text_atomically(config_json,
                        R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
      "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
      "rms_norm_eps": 1e-06, "hidden_act": "silu", "tie_word_embeddings": true,
      "torch_dtype": "bfloat16", )" +
                            model.sizes + "}\n");
  const ModelConfig config = parse_model_config(config_json);
  const test::RandomWeights weights(config);
  std::vector<Training> trainings;
  for (const Steps& steps : model.trainings) {
    if (!steps.measured_only || test::recording_trainings()) {
      trainings.push_back(training_of(steps));
    }
  }
  test::expect_the_cpus_losses(GetParam(), source.path(), weights, trainings);
}

INSTANTIATE_TEST_SUITE_P(Models, TrainingShapes, testing::Values("qwen2.5-0.5b", "qwen2.5-1.5b"));

}  // namespace
}  // namespace wick
