// A run that asks for a step before it reads the loss of the one before is the run that waits:
// the same files, the same error at the same step, and it can be stopped and resumed.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "tests/support/behind_backend.h"
#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/models/bundle.h"
#include "wick/train/trainer.h"

namespace wick {
namespace {

using test::Behaviour;
using test::BehindBackend;
using test::message_of;

// Asks to stop after so many steps.
class StopAfter : public Reporter {
 public:
  explicit StopAfter(int64_t steps) : steps_(steps) {}
  void on_step(const Metrics& metrics) override { steps_done.push_back(metrics.step); }
  bool should_stop() override { return static_cast<int64_t>(steps_done.size()) >= steps_; }

  std::vector<int64_t> steps_done;

 private:
  int64_t steps_;
};

class TrainAhead : public testing::Test {
 protected:
  TrainAhead() {
    test::write_tiny_model(model_, "llama", 1);
    write_text_atomically(data_, test::tiny_records());
  }
  TrainOptions options(const std::string& output) const {
    TrainOptions options;
    options.adapter.rank = 4;
    options.adapter.alpha = 8;
    options.adapter.dropout = 0.1F;
    options.learning_rate = 1e-2;
    options.steps = 11;
    options.batch_size = 4;
    options.report_every = 2;
    options.validate_every = 3;
    options.save_every = 4;
    options.output = folder_.path() / output;
    return options;
  }

  struct Outcome {
    TrainResult result;
    std::vector<int64_t> steps;
    int most_begun = 0;
    std::string error;  // "(no error)" where there was none
  };
  Outcome run(const TrainOptions& options, Behaviour behaviour,
              int64_t stop_after = 1 << 30) const {
    const auto cpu = make_backend("cpu", {.threads = 1});
    Profile profile;
    BehindBackend backend(*cpu, profile, behaviour);
    Bundle bundle = open_bundle(backend, model_);
    TrainData data{read_dataset(data_, bundle.tokenizer, {})};
    data.valid = data.train;
    StopAfter reporter(stop_after);
    Outcome outcome;
    outcome.error = message_of([&] { outcome.result = train(bundle, data, options, reporter); });
    outcome.steps = reporter.steps_done;
    outcome.most_begun = backend.most_begun();
    return outcome;
  }

  static std::string adapter_bytes(const TrainOptions& options) {
    return read_text(options.output / "adapter_model.safetensors");
  }
  // metrics.jsonl without what depends on the clock and on the process.
  static std::string metrics(const TrainOptions& options) {
    std::istringstream text(read_text(options.output / "metrics.jsonl"));
    std::string result;
    for (std::string line; std::getline(text, line);) {
      auto json = nlohmann::ordered_json::parse(line);
      for (const char* key :
           {"seconds", "tokens_per_second", "target_tokens_per_second", "peak_process_bytes"}) {
        json.erase(key);
      }
      result += json.dump() + "\n";
    }
    return result;
  }

  test::TemporaryFolder folder_;
  std::filesystem::path model_ = folder_.path() / "model";
  std::filesystem::path data_ = folder_.path() / "data.jsonl";
};

TEST_F(TrainAhead, WritesTheSameFiles) {
  const TrainOptions waiting = options("waiting");
  const TrainOptions ahead = options("ahead");
  const Outcome expected = run(waiting, {});
  const Outcome outcome = run(ahead, {.behind = true});
  EXPECT_EQ(expected.most_begun, 1);
  EXPECT_EQ(outcome.most_begun, 2);
  EXPECT_EQ(outcome.steps, expected.steps);
  EXPECT_EQ(metrics(ahead), metrics(waiting));
  EXPECT_EQ(adapter_bytes(ahead), adapter_bytes(waiting));
  EXPECT_EQ(outcome.result.loss, expected.result.loss);
}

TEST_F(TrainAhead, ALossThatIsNoNumberIsNamedByItsStep) {
  for (const int64_t step : {2, 6, 11}) {
    TrainOptions options = this->options("out");
    options.start = StartMode::overwrite;
    const Outcome expected = run(options, {.behind = false, .nan_at_step = step});
    const std::string expected_metrics = metrics(options);
    const std::string kept = step > 4 ? adapter_bytes(options) : "";
    const Outcome outcome = run(options, {.behind = true, .nan_at_step = step});
    EXPECT_TRUE(outcome.error.starts_with(fmt::format("step {}: the loss is not a number", step)))
        << outcome.error;
    EXPECT_EQ(outcome.error, expected.error);
    EXPECT_EQ(outcome.steps, expected.steps);
    EXPECT_EQ(metrics(options), expected_metrics);
    EXPECT_EQ(step > 4 ? adapter_bytes(options) : "", kept);
  }
}

// A step that is under way when the run is to stop is done, told and saved.
TEST_F(TrainAhead, StoppedAndResumedItIsTheSameRun) {
  const TrainOptions whole = options("whole");
  run(whole, {});
  TrainOptions parts = options("parts");
  std::vector<int64_t> steps;
  for (int part = 0; part < 11 && (steps.empty() || steps.back() < whole.steps); ++part) {
    const Outcome outcome = run(parts, {.behind = true}, 1 + part % 2);
    EXPECT_EQ(outcome.error, "(no error)");
    EXPECT_LE(outcome.steps.size(), 2U + part % 2) << "at most one more than was asked for";
    EXPECT_EQ(outcome.result.step, outcome.steps.back());
    steps.insert(steps.end(), outcome.steps.begin(), outcome.steps.end());
    parts.start = StartMode::resume;
  }
  std::vector<int64_t> all(static_cast<size_t>(whole.steps));
  std::iota(all.begin(), all.end(), 1);
  EXPECT_EQ(steps, all);
  EXPECT_EQ(adapter_bytes(parts), adapter_bytes(whole));
}

}  // namespace
}  // namespace wick
