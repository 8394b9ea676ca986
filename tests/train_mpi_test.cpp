// mpirun -n K wick train: the losses of one process, one end for all, and a process that is lost.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/support/child.h"
#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/base/file.h"

namespace wick {
namespace {

namespace fs = std::filesystem;

using test::Child;
using Words = std::vector<std::string>;

Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// The process of this rank that mpirun started, as Open MPI tells it.
pid_t process_of_rank(pid_t mpirun, int rank) {
  const std::string variable = fmt::format("OMPI_COMM_WORLD_RANK={}", rank);
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const std::string pid = entry.path().filename();
    if (!std::ranges::all_of(pid, [](char c) { return c >= '0' && c <= '9'; })) {
      continue;
    }
    std::ifstream status(entry.path() / "stat");
    std::string name;
    std::string state;
    pid_t parent = 0;
    status >> name >> name >> state >> parent;
    std::ifstream environment(entry.path() / "environ");
    for (std::string text; parent == mpirun && std::getline(environment, text, '\0');) {
      if (text == variable) {
        return std::stoi(pid);
      }
    }
  }
  return -1;
}

size_t count_of(const std::string& word, const std::string& text) {
  size_t count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    ++count;
  }
  return count;
}

class TrainMpi : public testing::Test {
 protected:
  TrainMpi() {
    // Open MPI keeps some memory to its end, and is not made for sanitizers; and containers may
    // forbid it to read another process's memory, which it says at length.
    ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    ::setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 1);
    test::write_tiny_model(path("model"), "llama", 1);
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      lines += fmt::format("{{\"prompt\": \"{}{}:\", \"completion\": \" {}\"}}\n",
                           std::string(static_cast<size_t>(i % 7), '0'), i, i * i);
    }
    write_text_atomically(path("data.jsonl"), lines);
  }
  fs::path path(const std::string& name) const { return folder_.path() / name; }

  Words program(const std::string& output, const Words& more) const {
    return Words{test::wick_program(), "train",    "--model",    path("model"),    "--data",
                 path("data.jsonl"),   "--output", path(output), "--report-every", "1",
                 "--threads",          "1"} +
           more;
  }
  static Words mpirun() {
    Words words = {WICK_MPIRUN, "--oversubscribe"};
    return ::geteuid() == 0 ? words + Words{"--allow-run-as-root"} : words;
  }
  Child start(int processes, const std::string& output, const Words& more) const {
    return Child(mpirun() + Words{"-n", std::to_string(processes)} + program(output, more),
                 folder_.path());
  }
  void run(int processes, const std::string& output, const Words& more) const {
    const Child child = processes == 1 ? Child(program(output, more), folder_.path())
                                       : start(processes, output, more);
    ASSERT_EQ(child.wait(), 0) << child.err();
  }

  std::string adapter_bytes(const std::string& output) const {
    return read_text(path(output) / "adapter_model.safetensors");
  }
  // What metrics.jsonl has in this field.
  std::vector<double> metrics(const std::string& output, const std::string& field = "loss") const {
    std::vector<double> values;
    if (fs::exists(path(output) / "metrics.jsonl")) {
      std::istringstream text(read_text(path(output) / "metrics.jsonl"));
      for (std::string line; std::getline(text, line);) {
        const nlohmann::json json = nlohmann::json::parse(line);
        if (json.contains(field)) {
          values.push_back(json[field]);
        }
      }
    }
    return values;
  }
  bool reaches(const std::string& output, size_t reports) const {
    for (int tries = 0; tries < 3000; ++tries) {
      if (metrics(output).size() >= reports) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  void expect_same_losses(const std::string& a, const std::string& b) const {
    for (const char* field : {"loss", "valid_loss", "gradient_norm"}) {
      const std::vector<double> as = metrics(a, field);
      const std::vector<double> bs = metrics(b, field);
      ASSERT_EQ(as.size(), bs.size()) << field;
      for (size_t i = 0; i < as.size(); ++i) {
        EXPECT_NEAR(as[i], bs[i], 1e-5) << field << " " << i;
      }
    }
  }

  test::TemporaryFolder folder_;
};

// Cut micro-batches with a smaller last one, dealt ones with dropout, both, and a share of nothing.
TEST_F(TrainMpi, SeveralProcessesGetTheLossesOfOne) {
  const std::vector<Words> settings = {
      {"--batch-size", "7", "--valid-fraction", "0.2", "--eval-every", "5"},
      {"--batch-size", "4", "--grad-accumulation", "2", "--dropout", "0.2"},
      {"--batch-tokens", "30", "--grad-accumulation", "3"},
      {"--batch-size", "1"},
  };
  for (size_t i = 0; i < settings.size(); ++i) {
    const Words all = settings[i] + Words{"--steps", "12"};
    const std::string number = std::to_string(i);
    run(1, "one" + number, all);
    run(2, "two" + number, all);
    ASSERT_EQ(metrics("two" + number).size(), 12U);
    expect_same_losses("one" + number, "two" + number);
  }
}

TEST_F(TrainMpi, TheSameNumberOfProcessesGivesTheSameBytes) {
  const Words settings = {"--steps", "6", "--dropout", "0.1"};
  run(3, "a", settings);
  run(3, "b", settings);
  EXPECT_EQ(adapter_bytes("a"), adapter_bytes("b"));
  EXPECT_EQ(metrics("a"), metrics("b"));
}

TEST_F(TrainMpi, AnyNumberOfProcessesGoesOn) {
  const Words settings = {"--schedule", "constant", "--warmup-steps", "0"};
  run(1, "one", settings + Words{"--steps", "12"});
  run(2, "many", settings + Words{"--steps", "4"});
  run(3, "many", settings + Words{"--steps", "8", "--resume"});
  run(1, "many", settings + Words{"--steps", "12", "--resume"});
  expect_same_losses("one", "many");
}

TEST_F(TrainMpi, OnlyRankZeroSpeaks) {
  const Child child = start(2, "out", {"--steps", "2"});
  ASSERT_EQ(child.wait(), 0) << child.err();
  EXPECT_NE(child.err().find("\n  2 processes\n"), std::string::npos) << child.err();
  EXPECT_EQ(count_of("step 2/2  loss", child.err()), 1U) << child.err();
  EXPECT_EQ(count_of("try it: ", child.err()), 1U) << child.err();
}

TEST_F(TrainMpi, ALostProcessEndsTheRunWhichCanGoOn) {
  const Words settings = {"--steps", "120", "--save-every", "3"};
  run(2, "whole", settings);
  for (const int rank : {1, 0}) {
    const std::string output = fmt::format("lost{}", rank);
    const Child child = start(2, output, settings);
    ASSERT_TRUE(reaches(output, 5)) << child.err();
    ASSERT_EQ(::kill(process_of_rank(child.pid(), rank), SIGKILL), 0);
    EXPECT_NE(child.wait(), 0);
    const std::string said = child.err();
    EXPECT_EQ(count_of("error: step ", said), 1U) << said;
    EXPECT_NE(said.find(fmt::format(": rank {} is gone; training stops, what step ", rank)),
              std::string::npos)
        << said;
    EXPECT_NE(said.find(" saved in " + path(output).string() + " is kept\n"), std::string::npos)
        << said;
    run(2, output, settings + Words{"--resume"});
    EXPECT_EQ(adapter_bytes(output), adapter_bytes("whole"));
    EXPECT_EQ(metrics(output), metrics("whole"));
  }
}

TEST_F(TrainMpi, AnInterruptOfOneSavesOnceAndEndsAll) {
  const Words settings = {"--save-every", "0", "--schedule", "constant"};
  const Child child = start(2, "out", settings + Words{"--steps", "100000"});
  ASSERT_TRUE(reaches("out", 3)) << child.err();
  ASSERT_EQ(::kill(process_of_rank(child.pid(), 1), SIGINT), 0);
  EXPECT_EQ(child.wait(), 128 + SIGINT);
  EXPECT_EQ(count_of("; the same command with --resume goes on from there\n", child.err()), 1U)
      << child.err();
  const size_t steps = metrics("out").size();
  run(2, "out", settings + Words{"--steps", std::to_string(steps + 2), "--resume"});
  EXPECT_EQ(metrics("out").size(), steps + 2);
}

TEST_F(TrainMpi, AnErrorIsSaidOnceAndEndsAll) {
  const auto errors_of = [&](const Words& command) {
    const Child child(command, folder_.path());
    EXPECT_EQ(child.wait(), 1);
    std::istringstream text(child.err());
    std::string errors;
    for (std::string line; std::getline(text, line);) {
      errors += line.starts_with("error: ") ? line + "\n" : "";
    }
    return errors;
  };
  EXPECT_EQ(errors_of(mpirun() + Words{"-n", "2"} + program("out", {"--lr", "0"})),
            "error: learning rate: 0 is not a positive number\n");
  const Words pair = mpirun() + Words{"-n", "1"} + program("out", {}) + Words{":", "-n", "1"};
  EXPECT_EQ(errors_of(pair + program("out", {"--rank", "3"}))
                .rfind("error: rank 1: this process trains something else than rank 0: ", 0),
            0U);
  EXPECT_EQ(errors_of(pair + program("out", {"--max-length", "129"})),
            "error: rank 1: --max-length 129 is more than the model's context of 128\n");
  EXPECT_FALSE(fs::exists(path("out")));
  // Not a number in the share of one process.
  EXPECT_EQ(
      errors_of(mpirun() + Words{"-n", "2"} + program("nan", {"--lr", "1e38"})),
      "error: step 2: the loss is not a number; training stops, nothing had been saved yet. A "
      "lower --learning-rate or a longer warm-up may help\n");
}

}  // namespace
}  // namespace wick
