// wick train as a process: killed, interrupted, refused, and evaluated afterwards.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/support/child.h"
#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/base/file.h"
#include "wick/base/random.h"
#include "wick/lora/peft_io.h"

namespace wick {
namespace {

namespace fs = std::filesystem;

using test::Child;

class TrainProgram : public testing::Test {
 protected:
  TrainProgram() {
    test::write_tiny_model(path("model"), "llama", 1);
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      const std::string number = std::to_string(i * i);
      lines += R"({"prompt": "square of )" + std::to_string(i) + R"(:", "completion": " )" +
               number + "\"}\n";
    }
    write_text_atomically(path("data.jsonl"), lines);
  }
  fs::path path(const std::string& name) const { return folder_.path() / name; }
  std::vector<std::string> arguments(const std::string& output,
                                     std::vector<std::string> more) const {
    std::vector<std::string> all = {test::wick_program(),
                                    "train",
                                    "--model",
                                    path("model"),
                                    "--data",
                                    path("data.jsonl"),
                                    "--output",
                                    path(output),
                                    "--batch-size",
                                    "4",
                                    "--dropout",
                                    "0.1",
                                    "--report-every",
                                    "1",
                                    "--threads",
                                    "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Child start(const std::string& output, const std::vector<std::string>& more) const {
    return Child(arguments(output, more), folder_.path());
  }
  std::string adapter_bytes(const std::string& output) const {
    return read_text(path(output) / "adapter_model.safetensors");
  }
  // Every line parses, or the test fails.
  std::vector<double> losses(const std::string& output) const {
    std::vector<double> losses;
    if (fs::exists(path(output) / "metrics.jsonl")) {
      std::istringstream text(read_text(path(output) / "metrics.jsonl"));
      for (std::string line; std::getline(text, line);) {
        losses.push_back(nlohmann::json::parse(line)["loss"]);
      }
    }
    return losses;
  }
  bool reaches(const std::string& output, size_t reports) const {
    for (int tries = 0; tries < 3000; ++tries) {
      if (losses(output).size() >= reports) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  test::TemporaryFolder folder_;
};

TEST_F(TrainProgram, KilledAtAnyMomentItGoesOnToTheSameBytes) {
  const std::vector<std::string> settings = {"--steps", "40", "--save-every", "1"};
  ASSERT_EQ(start("whole", settings).wait(), 0);

  std::vector<std::string> resumed = settings;
  resumed.emplace_back("--resume");
  const Random random(11, 0);
  int kills = 0;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const Child child = start("killed", resumed);
    const int64_t delay_us = 2000 + random.below(static_cast<uint64_t>(attempt), 60000);
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    child.send(SIGKILL);
    kills += child.wait() == 1000 + SIGKILL ? 1 : 0;
    losses("killed");
    if (fs::exists(path("killed") / "adapter_model.safetensors") &&
        fs::exists(path("killed") / "adapter_config.json")) {
      EXPECT_FALSE(read_peft(path("killed")).entries.empty());
    }
  }
  EXPECT_GT(kills, 0);
  const Child last = start("killed", resumed);
  ASSERT_EQ(last.wait(), 0) << last.err();
  EXPECT_EQ(adapter_bytes("killed"), adapter_bytes("whole"));
  EXPECT_EQ(losses("killed"), losses("whole"));
}

TEST_F(TrainProgram, StoppedBetweenTheFilesOfItsFirstSaveItGoesOn) {
  const std::vector<std::string> settings = {"--steps", "6", "--save-every", "3"};
  ASSERT_EQ(start("whole", settings).wait(), 0);

  // No file can be put where a folder is, so the first save ends when the adapter is to be put
  // there.
  const fs::path adapter = path("stopped") / "adapter_model.safetensors";
  fs::create_directories(adapter);
  std::vector<std::string> overwriting = settings;
  overwriting.emplace_back("--overwrite");
  const Child stopped = start("stopped", overwriting);
  EXPECT_EQ(stopped.wait(), 1);
  EXPECT_NE(stopped.err().find(adapter.string()), std::string::npos) << stopped.err();
  EXPECT_TRUE(fs::exists(path("stopped") / "checkpoint" / "state.safetensors"));

  fs::remove(adapter);
  std::vector<std::string> resumed = settings;
  resumed.emplace_back("--resume");
  const Child last = start("stopped", resumed);
  ASSERT_EQ(last.wait(), 0) << last.err();
  EXPECT_EQ(adapter_bytes("stopped"), adapter_bytes("whole"));
  EXPECT_EQ(losses("stopped"), losses("whole"));
}

TEST_F(TrainProgram, AnInterruptSavesAndSaysHowToGoOn) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string output = "out" + std::to_string(signal);
    const std::vector<std::string> settings = {"--steps", "100000", "--save-every", "0"};
    const Child child = start(output, settings);
    ASSERT_TRUE(reaches(output, 3)) << child.err();
    child.send(signal);
    EXPECT_EQ(child.wait(), 128 + signal);
    EXPECT_NE(child.err().find("; the same command with --resume goes on from there\n"),
              std::string::npos)
        << child.err();
    EXPECT_FALSE(read_peft(path(output)).entries.empty());
    EXPECT_TRUE(fs::exists(path(output) / "loss.svg"));
    const size_t steps = losses(output).size();
    const Child again =
        start(output, {"--steps", std::to_string(steps + 2), "--resume", "--save-every", "0"});
    EXPECT_EQ(again.wait(), 0) << again.err();
    EXPECT_EQ(losses(output).size(), steps + 2);
  }
}

TEST_F(TrainProgram, AnAdapterIsNotOverwrittenUnlessAsked) {
  ASSERT_EQ(start("out", {"--steps", "1"}).wait(), 0);
  const std::string before = adapter_bytes("out");
  const Child refused = start("out", {"--steps", "2"});
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_EQ(refused.err().substr(refused.err().find("error: ")),
            "error: " + path("out").string() +
                ": holds adapter_model.safetensors of an earlier run; go on with it by --resume, "
                "replace it by --overwrite, or name another folder\n");
  EXPECT_EQ(adapter_bytes("out"), before);
  EXPECT_EQ(start("out", {"--steps", "2", "--overwrite"}).wait(), 0);
  EXPECT_NE(adapter_bytes("out"), before);
}

TEST_F(TrainProgram, WithoutATerminalThereAreOnlyPlainLines) {
  const Child child = start("out", {"--steps", "2", "--valid-fraction", "0.1"});
  ASSERT_EQ(child.wait(), 0) << child.err();
  EXPECT_EQ(child.out(), "");
  EXPECT_EQ(child.err().find('\x1b'), std::string::npos);
  EXPECT_EQ(child.err().find('\r'), std::string::npos);
  EXPECT_NE(child.err().find("\nstep 2/2  loss "), std::string::npos) << child.err();
  EXPECT_NE(child.err().find("  valid loss "), std::string::npos) << child.err();
  EXPECT_NE(child.err().find("rank 16, alpha 32 (scaling 2), dropout 0.1, on 14 layers"),
            std::string::npos)
      << child.err();
  EXPECT_NE(child.err().find("peak memory "), std::string::npos) << child.err();
}

TEST_F(TrainProgram, BadRequestsAreNamed) {
  const auto error_of = [&](const std::vector<std::string>& more) {
    const Child child = start("out", more);
    EXPECT_EQ(child.wait(), 1);
    const std::string said = child.err();
    const size_t at = said.find("error: ");
    return at == std::string::npos ? said : said.substr(at);
  };
  EXPECT_EQ(error_of({"--max-length", "129"}),
            "error: --max-length 129 is more than the model's context of 128\n");
  EXPECT_EQ(error_of({"--init", "random"}),
            "error: --init random trains a model from nothing: it needs --type full\n");
  EXPECT_EQ(error_of({"--lr", "0"}), "error: learning rate: 0 is not a positive number\n");
  EXPECT_NE(error_of({"--rank", "0"}).find("rank"), std::string::npos);
  EXPECT_NE(error_of({"--alpha", "nan"}).find("alpha"), std::string::npos);
  EXPECT_NE(error_of({"--targets", "q_prj"}).find("q_prj"), std::string::npos);
  // A run that cannot start used to leave an empty folder, which the next one took for a result.
  EXPECT_FALSE(fs::exists(path("out")));
}

TEST_F(TrainProgram, MatmulPrecisionIsSaidKeptAndRefusedByName) {
  // On a GPU the weights' type decides, and other words are said.
  const auto last_of = [&](std::vector<std::string> more, int status) {
    more.insert(more.end(), {"--device", "cpu"});
    const Child child = start("out", more);
    EXPECT_EQ(child.wait(), status) << child.err();
    return child.err();
  };
  const auto says = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  // The model of the fixture is f32.
  const std::string f32 = last_of({"--steps", "1", "--matmul-precision", "medium"}, 0);
  says(f32, "--matmul-precision medium changes nothing: the model's weights are not bf16");
  says(f32, "matmul precision highest: products are f32");

  fs::remove_all(path("model"));
  test::write_tiny_model(path("model"), {.family = "llama", .seed = 1, .dtype = DType::bf16});
  const std::string medium =
      last_of({"--steps", "1", "--overwrite", "--matmul-precision", "medium"}, 0);
  says(medium,
       "matmul precision medium: activations and gradients are rounded to bf16 for products with "
       "the weights");
  const std::string resumed =
      last_of({"--steps", "2", "--resume", "--matmul-precision", "highest"}, 1);
  says(resumed, "is of another run: matmul precision was medium, now is highest; ");
  last_of({"--steps", "2", "--resume", "--matmul-precision", "medium"}, 0);
  says(last_of({"--matmul-precision", "high"}, 2), "high not in {auto,highest,medium}");
}

TEST_F(TrainProgram, EvaluateComparesModelAndAdapter) {
  ASSERT_EQ(start("out", {"--steps", "20", "--lr", "1e-2"}).wait(), 0);
  const std::vector<std::string> common = {
      test::wick_program(), "evaluate",  "--model",   path("model"), "--data",
      path("data.jsonl"),   "--adapter", path("out"), "--compare",   "--exact-match"};
  std::vector<std::string> as_json = common;
  as_json.emplace_back("--json");
  const Child json_child(as_json, folder_.path());
  ASSERT_EQ(json_child.wait(), 0) << json_child.err();
  const auto json = nlohmann::json::parse(json_child.out());
  EXPECT_LT(json["adapter"]["loss"], json["model"]["loss"]);
  EXPECT_NEAR(std::exp(json["model"]["loss"].get<double>()), json["model"]["perplexity"], 1e-6);
  EXPECT_EQ(json["adapter"]["questions"], 40);

  const Child table(common, folder_.path());
  ASSERT_EQ(table.wait(), 0) << table.err();
  EXPECT_EQ(table.out().rfind("              model                   adapter\nloss          ", 0),
            0U)
      << table.out();
  EXPECT_NE(table.out().find("\nprompt        square of 0:\nexpected      0\nmodel         "),
            std::string::npos)
      << table.out();
}

}  // namespace
}  // namespace wick
