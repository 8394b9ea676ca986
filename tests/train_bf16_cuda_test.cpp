// Ten training steps of models that have learnt something, in f32 and bf16 on a GPU, give the CPU's
// losses. A step has 16384 targets: rounding is averaged over them (docs/performance.md, "What bf16
// costs", has what remains with fewer).
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/test_data.h"
#include "tests/support/training_comparison.h"
#include "wick/base/random.h"
#include "wick/data/dataset.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

using test::Ids;
using test::Training;

constexpr int kSteps = 10;
constexpr int64_t kTargets = 16384;

// Stretches of a long text from random places.
class Text {
 public:
  explicit Text(Ids ids) : ids_(std::move(ids)) {}

  Training training(int64_t targets, int64_t length, const std::string& rate, int run) const {
    Training training;
    training.name = fmt::format("{},{},{}", targets, rate, run);
    training.learning_rate = std::stof(rate);
    const Random random(5, static_cast<uint64_t>(targets + run));
    uint64_t index = 0;
    for (int i = 0; i < kSteps; ++i) {
      std::vector<Ids>& step = training.steps.emplace_back();
      for (int64_t sequence = 0; sequence < targets / length; ++sequence) {
        const auto places = static_cast<uint32_t>(static_cast<int64_t>(ids_.size()) - length);
        const auto begin = ids_.begin() + random.below(index++, places);
        step.emplace_back(begin, begin + length + 1);
      }
    }
    return training;
  }

  // Those that the test is about; for a recording also more of them, and some of smaller steps.
  std::vector<Training> trainings(int64_t length) const {
    struct Sizes {
      int64_t targets;
      int runs;
    };
    std::vector<Training> all;
    for (const char* rate : {"2e-4", "1e-3"}) {
      for (const auto& [targets, runs] : {Sizes{kTargets, 4}, Sizes{2048, 8}, Sizes{256, 16}}) {
        for (int run = 0; run < runs; ++run) {
          const bool measured_only = targets < kTargets || run > 0;
          if (!measured_only || test::recording_trainings()) {
            all.push_back(training(targets, length, rate, run));
            all.back().measured_only = measured_only;
          }
        }
      }
    }
    return all;
  }

 private:
  Ids ids_;
};

class TrainingOfTrainedModels : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::has_cuda_device()) {
      GTEST_SKIP() << "no CUDA device answers here";
    }
  }
};

TEST_F(TrainingOfTrainedModels, TheDemosGivesTheCpusLosses) {
  const std::filesystem::path folder = WICK_SOURCE_DIR "/demo/base";
  const Dataset data = read_dataset(WICK_SOURCE_DIR "/demo/data/train.jsonl",
                                    Tokenizer::from_folder(folder), {.train_on = TrainOn::all});
  Ids ids;
  for (const Sample& sample : data.samples) {
    ids.insert(ids.end(), sample.ids.begin(), sample.ids.end());
  }
  test::expect_the_cpus_losses("demo", folder, *open_weights(folder),
                               Text(std::move(ids)).trainings(128));
}

// A model of children's stories learns Shakespeare.
TEST_F(TrainingOfTrainedModels, OneOfStoriesGivesTheCpusLosses) {
  WICK_REQUIRE_DATA("models/stories260K-hf/model.safetensors");
  WICK_REQUIRE_DATA("text/tinyshakespeare/input.txt");
  const std::filesystem::path folder = test::data_folder() / "models/stories260K-hf";
  const Tokenizer tokenizer = Tokenizer::from_folder(folder);
  std::ifstream text(test::data_folder() / "text/tinyshakespeare/input.txt");
  Ids ids;
  for (std::string line; std::getline(text, line);) {
    const Ids more = tokenizer.encode(line + "\n", false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  test::expect_the_cpus_losses("stories260K", folder, *open_weights(folder),
                               Text(std::move(ids)).trainings(256));
}

}  // namespace
}  // namespace wick
