// Schedules, the bar, the metrics file, the loss picture and the output folder: all that needs no
// model.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "wick/base/file.h"
#include "wick/base/log.h"
#include "wick/base/progress.h"
#include "wick/train/loss_chart.h"
#include "wick/train/optimizer.h"
#include "wick/train/run_folder.h"
#include "wick/train/schedule.h"

namespace wick {
namespace {

using test::message_of;

TEST(Schedule, WarmsUpThenDecays) {
  Schedule schedule{.decay = Decay::linear, .warmup_steps = 4, .total_steps = 14};
  EXPECT_DOUBLE_EQ(schedule.factor(0), 0.25);
  EXPECT_DOUBLE_EQ(schedule.factor(3), 1.0);
  EXPECT_DOUBLE_EQ(schedule.factor(4), 1.0);
  EXPECT_DOUBLE_EQ(schedule.factor(9), 0.5);
  EXPECT_NEAR(schedule.factor(13), 0.1, 1e-12);
  schedule.decay = Decay::cosine;
  EXPECT_DOUBLE_EQ(schedule.factor(9), 0.5);
  EXPECT_NEAR(schedule.factor(14), 0.0, 1e-12);
  schedule.floor = 0.1;
  EXPECT_NEAR(schedule.factor(14), 0.1, 1e-12);
  schedule.decay = Decay::constant;
  EXPECT_DOUBLE_EQ(schedule.factor(13), 1.0);
}

TEST(Schedule, UnknownNamesAreErrors) {
  EXPECT_EQ(decay_from_name("cosine"), Decay::cosine);
  EXPECT_EQ(message_of([] { decay_from_name("cosin"); }),
            "schedule: \"cosin\" is unknown; there are constant, linear and cosine");
}

TEST(Amounts, AreShownAsPeopleReadThem) {
  EXPECT_EQ(format_duration(42.4), "0:42");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_bytes(812), "812 bytes");
  EXPECT_EQ(format_bytes(1250000000), "1.25 GB");
  EXPECT_EQ(format_count(13400), "13.4k");
  EXPECT_EQ(format_count(2510000), "2.51M");
}

TEST(ProgressBar, ShowsShareNoteAndTimeLeft) {
  EXPECT_EQ(format_progress({"training", 3, 4, "loss 1.5", 0.5}, 60),
            "training [================>     ]  75%  loss 1.5  0:02 left");
  EXPECT_EQ(format_progress({"training", 3, 4, "loss 1.5", 0.5}, 30),
            "training  75%  loss 1.5  0:02");
}

TEST(Log, GoesToTheSinkThatIsSet) {
  std::vector<std::string> lines;
  const LogSink before =
      set_log_sink([&](LogLevel, std::string_view line) { lines.emplace_back(line); });
  log_info("{} of {}", 1, 2);
  log_debug("not shown at this level");
  set_log_sink(before);
  EXPECT_EQ(lines, std::vector<std::string>{"1 of 2"});
}

TEST(LossChart, DrawsEveryFinitePointWithinTheFrame) {
  const std::vector<LossPoint> train = {{10, 3.0}, {20, std::nan("")}, {30, 1.0}};
  const std::vector<LossPoint> valid = {{30, 1.5}};
  const std::string svg = draw_loss_chart(train, valid);
  // x from step 0 to 30 over 64..780; y from loss 1 (bottom, 372) to 3 (top, 28).
  EXPECT_NE(svg.find("points=\"302.7,28.0 780.0,372.0\""), std::string::npos) << svg;
  EXPECT_NE(svg.find("points=\"780.0,286.0\""), std::string::npos) << svg;
  EXPECT_NE(svg.find("<circle cx=\"780.0\" cy=\"286.0\""), std::string::npos) << svg;
  EXPECT_NE(svg.find("validation loss"), std::string::npos);
  EXPECT_EQ(draw_loss_chart({}, {}).find("polyline"), std::string::npos);
}

Metrics metrics_at(int64_t step, double loss) {
  Metrics metrics;
  metrics.step = step;
  metrics.loss = loss;
  return metrics;
}

TEST(MetricsFile, DropsWhatCameAfterTheCheckpointAndHalfLines) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    file.append(metrics_at(10, 2.5));
    file.append(Validation{.set = "valid", .step = 10, .loss = 2.0});
    file.append(metrics_at(20, 2.25));
  }
  std::ofstream(path, std::ios::app) << "{\"step\": 30, \"lo";
  MetricsFile file(path, 10);
  file.append(metrics_at(20, 2.125));
  file.write_chart(folder.path() / "loss.svg");

  std::istringstream text(read_text(path));
  std::vector<std::pair<int, double>> losses;
  for (std::string line; std::getline(text, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    losses.emplace_back(json["step"], json.value("loss", -1.0));
  }
  EXPECT_EQ(losses, (std::vector<std::pair<int, double>>{{10, 2.5}, {10, -1.0}, {20, 2.125}}));
  EXPECT_NE(read_text(folder.path() / "loss.svg").find("polyline"), std::string::npos);
}

// Takes the folder of a run, and lets go of it.
void open_run(const std::filesystem::path& folder, StartMode mode) {
  [[maybe_unused]] const RunFolder opened(folder, mode);
}

TEST(RunFolder, AResultIsNotTouchedUnlessAsked) {
  const test::TemporaryFolder folder;
  const auto output = folder.path() / "out";
  const std::string name = output.string();
  open_run(output, StartMode::fresh);
  open_run(output, StartMode::fresh);  // an empty folder is no result
  write_text_atomically(output / "adapter_config.json", "{}");
  EXPECT_EQ(message_of([&] { open_run(output, StartMode::fresh); }),
            name +
                ": holds adapter_config.json of an earlier run; go on with it by --resume, "
                "replace it by --overwrite, or name another folder");
  EXPECT_EQ(message_of([&] { open_run(output, StartMode::resume); }),
            name +
                ": holds adapter_config.json but no checkpoint/state.safetensors, so there is "
                "nothing to resume; replace it by --overwrite, or name another folder");
  write_text_atomically(output / "checkpoint" / "state.safetensors", "x");
  EXPECT_TRUE(RunFolder(output, StartMode::resume).resumes());
  open_run(output, StartMode::overwrite);
  EXPECT_FALSE(std::filesystem::exists(output / "checkpoint" / "state.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(output / "adapter_config.json"));
}

TEST(RunFolder, WhatAKilledRunLeftUnfinishedIsRemoved) {
  const test::TemporaryFolder folder;
  const auto checkpoint = folder.path() / "checkpoint";
  std::filesystem::create_directories(checkpoint);
  write_text_atomically(checkpoint / "state.safetensors", "x");
  write_text_atomically(checkpoint / ".state.safetensors.Ab12Cd", "x");
  write_text_atomically(folder.path() / ".adapter_model.safetensors.Ab12Cd", "x");
  write_text_atomically(folder.path() / ".notes", "x");
  open_run(folder.path(), StartMode::resume);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(checkpoint), {}), 1);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / ".adapter_model.safetensors.Ab12Cd"));
  EXPECT_TRUE(std::filesystem::exists(folder.path() / ".notes"));
}

TEST(RunFolder, AFileInItsPlaceIsAnError) {
  const test::TemporaryFolder folder;
  const auto output = folder.path() / "out";
  write_text_atomically(output, "x");
  EXPECT_EQ(message_of([&] { open_run(output, StartMode::fresh); }),
            output.string() + ": is not a folder");
}

}  // namespace
}  // namespace wick
