// The laws of training: resumed = uninterrupted, any number of threads, any split into
// micro-batches.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/base/log.h"
#include "wick/models/bundle.h"
#include "wick/train/evaluate.h"
#include "wick/train/trainer.h"

namespace wick {
namespace {

using test::message_of;

// Keeps each step's loss; asks to stop after `stop_after` steps of this process.
class Recorder : public Reporter {
 public:
  explicit Recorder(int64_t stop_after = 1 << 30) : stop_after_(stop_after) {}
  void on_step(const Metrics& metrics) override { losses.push_back(metrics.loss); }
  void on_start(const TrainPlan& started) override { plan = started; }
  bool should_stop() override { return static_cast<int64_t>(losses.size()) >= stop_after_; }

  std::vector<double> losses;
  TrainPlan plan;

 private:
  int64_t stop_after_;
};

struct Outcome {
  std::vector<double> losses;  // by step
  TrainResult result;
  TrainPlan plan;
};

class TrainTest : public testing::Test {
 protected:
  TrainTest() {
    model_ = folder_.path() / "model";
    test::write_tiny_model(model_, "llama", 1);
    data_ = folder_.path() / "data.jsonl";
    write_text_atomically(data_, test::tiny_records());
  }

  TrainOptions options(const std::string& output) const {
    TrainOptions options;
    options.adapter.rank = 4;
    options.adapter.alpha = 8;
    options.learning_rate = 1e-2;
    options.steps = 12;
    options.batch_size = 4;
    options.report_every = 1;
    options.output = folder_.path() / output;
    return options;
  }
  Outcome run(const TrainOptions& options, int64_t stop_after = 1 << 30, int threads = 1) const {
    const auto backend = make_backend("cpu", {.threads = threads, .matmul_precision = precision_});
    Bundle bundle = open_bundle(*backend, model_);
    TrainData data{read_dataset(data_, bundle.tokenizer, {})};
    Recorder recorder(stop_after);
    Outcome outcome;
    outcome.result = train(bundle, data, options, recorder);
    outcome.losses = recorder.losses;
    outcome.plan = recorder.plan;
    return outcome;
  }
  // The model with weights in bf16, which matmul precision makes a difference to.
  void take_bf16_model(MatmulPrecision precision) {
    model_ = folder_.path() / "bf16-model";
    test::write_tiny_model(model_, {.family = "llama", .seed = 1, .dtype = DType::bf16});
    precision_ = precision;
  }
  std::string adapter_bytes(const TrainOptions& options) const {
    return read_text(options.output / "adapter_model.safetensors");
  }

  // The losses that metrics.jsonl reports.
  static std::vector<double> reported_losses(const TrainOptions& options) {
    std::istringstream text(read_text(options.output / "metrics.jsonl"));
    std::vector<double> losses;
    for (std::string line; std::getline(text, line);) {
      losses.push_back(nlohmann::json::parse(line)["loss"]);
    }
    return losses;
  }

  test::TemporaryFolder folder_;
  MatmulPrecision precision_ = MatmulPrecision::highest;
  std::filesystem::path model_;
  std::filesystem::path data_;
};

TEST_F(TrainTest, LearnsTheData) {
  TrainOptions options = this->options("out");
  options.steps = 60;
  const Outcome outcome = run(options);
  EXPECT_LT(outcome.losses.back(), 0.7 * outcome.losses.front());
  EXPECT_TRUE(std::filesystem::exists(options.output / "adapter_config.json"));
  EXPECT_NE(read_text(options.output / "loss.svg").find("polyline"), std::string::npos);
  EXPECT_GT(outcome.result.peak_backend_bytes, 0U);
  EXPECT_GT(outcome.result.peak_process_bytes, outcome.result.peak_backend_bytes);
}

TEST_F(TrainTest, EveryMetricsLineIsWholeAndInOrder) {
  const TrainOptions options = this->options("out");
  const Outcome outcome = run(options);
  std::istringstream text(read_text(options.output / "metrics.jsonl"));
  std::vector<double> losses;
  for (std::string line; std::getline(text, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    EXPECT_EQ(json["step"], losses.size() + 1);
    losses.push_back(json["loss"]);
  }
  EXPECT_EQ(losses, outcome.losses);
}

TEST_F(TrainTest, ResumedRunEqualsUninterruptedRun) {
  for (const float dropout : {0.0F, 0.3F}) {
    for (const int64_t report_every : {1, 5}) {
      SCOPED_TRACE(fmt::format("dropout {}, report every {}", dropout, report_every));
      TrainOptions whole = options(fmt::format("whole-{}-{}", dropout, report_every));
      whole.adapter.dropout = dropout;
      whole.accumulation = 2;
      whole.report_every = report_every;
      const Outcome expected = run(whole);
      TrainOptions parts = whole;
      parts.output = folder_.path() / fmt::format("parts-{}-{}", dropout, report_every);
      std::vector<double> losses;
      for (int part = 0; part < 4; ++part) {
        const Outcome outcome = run(parts, 3);
        losses.insert(losses.end(), outcome.losses.begin(), outcome.losses.end());
        EXPECT_EQ(outcome.result.interrupted, part < 3);
        parts.start = StartMode::resume;
      }
      EXPECT_EQ(losses, expected.losses);
      EXPECT_EQ(adapter_bytes(parts), adapter_bytes(whole));
      EXPECT_EQ(reported_losses(parts), reported_losses(whole));
    }
  }
}

TEST_F(TrainTest, ThreadsDoNotChangeTheBytes) {
  TrainOptions one = options("one");
  one.adapter.dropout = 0.1F;
  TrainOptions three = one;
  three.output = folder_.path() / "three";
  EXPECT_EQ(run(one, 1 << 30, 1).losses, run(three, 1 << 30, 3).losses);
  EXPECT_EQ(adapter_bytes(one), adapter_bytes(three));
}

TEST_F(TrainTest, AtMediumPrecisionResumedRunsAndAnyThreadsGiveTheSameBytes) {
  take_bf16_model(MatmulPrecision::medium);
  const TrainOptions whole = options("whole");
  const Outcome expected = run(whole);
  EXPECT_EQ(expected.plan.matmul_precision, MatmulPrecision::medium);
  TrainOptions parts = options("parts");
  std::vector<double> losses;
  for (int part = 0; part < 3; ++part) {
    const Outcome outcome = run(parts, 4, part + 1);
    losses.insert(losses.end(), outcome.losses.begin(), outcome.losses.end());
    parts.start = StartMode::resume;
  }
  EXPECT_EQ(losses, expected.losses);
  EXPECT_EQ(adapter_bytes(parts), adapter_bytes(whole));
}

// Rounding to bf16 changes a number by at most u = 2^-9 of it, and a sum of many by u / sqrt(3) of
// its size as a rule. On the way to the loss there are nine roundings one after the other (four a
// layer, the head), so it is off by sqrt(9) u / sqrt(3) = 1.7 u; the gradients' way back does the
// same to the steps. Together 3.5 u: at most 4 u of the first loss are allowed.
TEST_F(TrainTest, LossesAtMediumPrecisionStayCloseToThoseAtHighest) {
  take_bf16_model(MatmulPrecision::highest);
  TrainOptions exact = options("highest");
  exact.steps = 40;
  TrainOptions rounded = exact;
  rounded.output = folder_.path() / "medium";
  const std::vector<double> expected = run(exact).losses;
  precision_ = MatmulPrecision::medium;
  const std::vector<double> losses = run(rounded).losses;
  ASSERT_EQ(losses.size(), expected.size());
  EXPECT_NE(losses, expected);
  EXPECT_LT(expected.back(), 0.8 * expected.front());
  double largest = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    largest = std::max(largest, std::abs(losses[i] - expected[i]));
  }
  EXPECT_LE(largest, 4 * 0x1p-9 * expected.front());
}

TEST_F(TrainTest, AnotherMatmulPrecisionIsAnotherRun) {
  take_bf16_model(MatmulPrecision::medium);
  TrainOptions options = this->options("out");
  run(options, 3);
  options.start = StartMode::resume;
  precision_ = MatmulPrecision::highest;
  EXPECT_EQ(message_of([&] { run(options); }),
            options.output.string() +
                "/checkpoint/state.safetensors: is of another run: matmul precision was medium, "
                "now is highest; give the same options, or start anew with --overwrite");
}

TEST_F(TrainTest, TheSeedDecides) {
  TrainOptions first = options("first");
  TrainOptions second = options("second");
  second.seed = 1;
  run(first);
  run(second);
  EXPECT_NE(adapter_bytes(first), adapter_bytes(second));
}

// Samples of unequal length make a mean of means differ from the mean over tokens.
TEST_F(TrainTest, AccumulationWeighsByTokens) {
  TrainOptions large = options("large");
  large.batch_size = 8;
  TrainOptions small = options("small");
  small.batch_size = 2;
  small.accumulation = 4;
  const Outcome expected = run(large);
  const Outcome outcome = run(small);
  ASSERT_EQ(outcome.losses.size(), expected.losses.size());
  for (size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_NEAR(outcome.losses[i], expected.losses[i], 1e-4 * expected.losses[i]) << i;
  }
}

TEST_F(TrainTest, PackedEqualsUnpacked) {
  const auto backend = make_backend("cpu");
  Bundle bundle = open_bundle(*backend, model_);
  const Dataset data = read_dataset(data_, bundle.tokenizer, {});
  const Evaluation packed = evaluate(*bundle.decoder, data.samples, 4096);
  const Evaluation alone = evaluate(*bundle.decoder, data.samples, 1);
  EXPECT_EQ(packed.target_tokens, alone.target_tokens);
  EXPECT_NEAR(packed.loss, alone.loss, 1e-6 * alone.loss);
  EXPECT_DOUBLE_EQ(packed.perplexity, std::exp(packed.loss));
}

TEST_F(TrainTest, ALossThatIsNoNumberStopsAndKeepsWhatWasSaved) {
  TrainOptions options = this->options("out");
  options.steps = 4;
  run(options);
  const std::string saved = adapter_bytes(options);
  options.start = StartMode::resume;
  options.steps = 400;
  options.learning_rate = 1e30;
  EXPECT_EQ(message_of([&] { run(options); }),
            options.output.string() +
                "/checkpoint/state.safetensors: is of another run: learning rate was 0.01, now is "
                "1e+30; give the same options, or start anew with --overwrite");

  options.start = StartMode::overwrite;
  options.max_gradient_norm = 0;
  const std::string message = message_of([&] { run(options); });
  EXPECT_NE(message.find(" is not a number; training stops, nothing had been saved yet. A lower "
                         "--learning-rate or a longer warm-up may help"),
            std::string::npos)
      << message;
  EXPECT_EQ(message.rfind("step ", 0), 0U) << message;
  EXPECT_EQ(adapter_bytes(options), saved);
}

TEST_F(TrainTest, AFinishedRunCanBeGivenMoreSteps) {
  TrainOptions options = this->options("out");
  run(options);
  options.start = StartMode::resume;
  EXPECT_TRUE(run(options).losses.empty());
  options.steps = 15;
  EXPECT_EQ(run(options).losses.size(), 3U);
}

TEST_F(TrainTest, AStateThatIsDamagedIsAnError) {
  TrainOptions options = this->options("out");
  run(options);
  options.start = StartMode::resume;
  const auto state = options.output / "checkpoint" / "state.safetensors";
  const std::string whole = read_text(state);
  write_text_atomically(state, std::string_view(whole).substr(0, whole.size() / 2));
  EXPECT_NE(message_of([&] { run(options); }).find("state.safetensors"), std::string::npos);
}

TEST_F(TrainTest, ASampleLongerThanTheContextIsAnError) {
  write_text_atomically(data_, fmt::format("{{\"text\": \"{}\"}}\n", std::string(300, 'x')));
  EXPECT_EQ(message_of([&] { run(options("out")); }),
            "a sample is 301 tokens long, the model's context is 128; use --max-length 128 to cut "
            "samples");
}

TEST_F(TrainTest, TheModelsOwnFolderIsNoOutput) {
  TrainOptions options = this->options("out");
  options.output = model_;
  options.start = StartMode::overwrite;
  EXPECT_EQ(message_of([&] { run(options); }),
            model_.string() + ": is the model's own folder; the output needs another");
}

TEST_F(TrainTest, BadOptionsAreNamed) {
  const auto error_with = [&](auto change) {
    TrainOptions changed = options("out");
    change(changed);
    return message_of([&] { run(changed); });
  };
  EXPECT_EQ(error_with([](TrainOptions& o) { o.learning_rate = std::nan(""); }),
            "learning rate: nan is not a positive number");
  EXPECT_EQ(error_with([](TrainOptions& o) { o.steps = 0, o.epochs = -1; }),
            "epochs: -1 is not a positive number");
  EXPECT_EQ(error_with([](TrainOptions& o) { o.steps = 0, o.epochs = 1e300; }),
            "epochs: 1e+300 is more than 100000");
  EXPECT_EQ(error_with([](TrainOptions& o) { o.warmup_ratio = 1; }),
            "warm-up ratio: 1 is not in [0, 1)");
  EXPECT_EQ(error_with([](TrainOptions& o) { o.weight_decay = -1; }),
            "weight decay: -1 is not a number from 0 on");
  EXPECT_EQ(error_with([](TrainOptions& o) { o.output.clear(); }), "no output folder is given");
}

TEST_F(TrainTest, AllWeightsCanBeTrainedFromRandomOnes) {
  TrainOptions options = this->options("out");
  options.type = TrainType::full;
  options.steps = 40;
  options.saved_dtype = DType::f32;
  const auto backend = make_backend("cpu");
  Bundle bundle = open_bundle(*backend, model_, {.random_weights = true, .seed = 3});
  TrainData data{read_dataset(data_, bundle.tokenizer, {})};
  Recorder recorder;
  train(bundle, data, options, recorder);
  EXPECT_LT(recorder.losses.back(), 0.5 * recorder.losses.front());
  EXPECT_EQ(recorder.plan.trainable_parameters, recorder.plan.all_parameters);

  Bundle written = open_bundle(*backend, options.output);
  EXPECT_DOUBLE_EQ(evaluate(*written.decoder, data.train.samples).loss,
                   evaluate(*bundle.decoder, data.train.samples).loss);
}

}  // namespace
}  // namespace wick
