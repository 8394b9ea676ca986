// Profiles: what a back end is asked for passes through unchanged, is timed, and is reported.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/host_tensor.h"
#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/profiling_backend.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"

namespace wick {
namespace {

using Ms = std::chrono::milliseconds;

nlohmann::json read_trace(const std::filesystem::path& file) {
  return nlohmann::json::parse(read_text(file));
}

TEST(Profile, AddsUpByKernelAndSharesOfTheWallTime) {
  Profile profile;
  profile.resume();
  const Profile::Clock::time_point start = Profile::Clock::now();
  profile.add("matmul", "[1, 2]", start, start + Ms(30), {.flops = 6e7, .bytes = 3e6});
  profile.add("matmul", "[3, 4]", start + Ms(30), start + Ms(60), {});
  profile.add("gate", "[1, 2]", start + Ms(90), start + Ms(100), {});
  profile.pause();
  EXPECT_DOUBLE_EQ(profile.wall_seconds(), 0.1);
  EXPECT_EQ(profile.totals().at("matmul").calls, 2);
  EXPECT_DOUBLE_EQ(profile.totals().at("matmul").seconds, 0.06);
  std::istringstream lines(profile.table());
  std::vector<std::string> table;
  for (std::string line; std::getline(lines, line);) {
    table.push_back(line);
  }
  ASSERT_EQ(table.size(), 6U);
  EXPECT_NE(table[1].find("matmul"), std::string::npos);
  EXPECT_NE(table[1].find("60.0 %"), std::string::npos);
  EXPECT_NE(table[2].find("  [1, 2]"), std::string::npos);
  EXPECT_NE(table[2].find("2.0      0.1"), std::string::npos) << "GF/s and GB/s: " << table[2];
  EXPECT_NE(table[4].find("gate"), std::string::npos);
  EXPECT_NE(table[5].find("(outside kernels)"), std::string::npos);
  EXPECT_NE(table[5].find("30.0 %"), std::string::npos);
}

TEST(Profile, CountsNothingWhilePaused) {
  Profile profile;
  const Profile::Clock::time_point start = Profile::Clock::now();
  profile.add("gate", "", start, start + Ms(5), {});
  profile.resume();
  profile.add("gate", "", start + Ms(10), start + Ms(11), {});
  profile.pause();
  profile.add("gate", "", start + Ms(20), start + Ms(25), {});
  profile.resume();
  profile.add("gate", "", start + Ms(30), start + Ms(32), {});
  profile.pause();
  EXPECT_EQ(profile.totals().at("gate").calls, 2);
  EXPECT_DOUBLE_EQ(profile.wall_seconds(), 0.003);
}

TEST(Profile, WritesATraceThatParses) {
  const test::TemporaryFolder folder;
  Profile profile;
  profile.write_trace(folder.path() / "empty.json");
  EXPECT_TRUE(read_trace(folder.path() / "empty.json")["traceEvents"].empty());
  profile.resume();
  const Profile::Clock::time_point start = Profile::Clock::now();
  profile.add("matmul", "[1, 2]", start, start + Ms(2), {.flops = 12});
  profile.add("gate", "", start + Ms(3), start + Ms(4), {});
  profile.write_trace(folder.path() / "two.json");
  const nlohmann::json events = read_trace(folder.path() / "two.json")["traceEvents"];
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0]["name"], "matmul");
  EXPECT_EQ(events[0]["ph"], "X");
  EXPECT_DOUBLE_EQ(events[0]["dur"], 2000);
  EXPECT_EQ(events[0]["args"]["shape"], "[1, 2]");
  EXPECT_EQ(events[0]["args"]["flops"], 12);
  EXPECT_DOUBLE_EQ(events[1]["ts"], 3000);
}

TEST(ProfilingBackend, CountsTheWorkOfAKernelAndLeavesItsResult) {
  const auto inner = make_backend("cpu");
  Profile profile;
  ProfilingBackend backend(*inner, profile);
  const Tensor a = test::to_device(backend, test::draw(6, 1), {2, 3});
  const Tensor b = test::to_device(backend, test::draw(12, 2), {4, 3});
  const Tensor plain = inner->allocate({2, 4}, DType::f32);
  const Tensor profiled = backend.allocate({2, 4}, DType::f32);
  inner->matmul(a, b, {}, plain);
  profile.resume();
  backend.matmul(a, b, {}, profiled);
  profile.pause();
  EXPECT_EQ(test::to_host(*inner, profiled), test::to_host(*inner, plain));
  const Profile::Total total = profile.totals().at("matmul nt");
  EXPECT_EQ(total.calls, 1);
  EXPECT_EQ(total.cost.flops, 2 * 2 * 4 * 3);
  EXPECT_EQ(total.cost.bytes, 4 * (6 + 12 + 8));
  EXPECT_GT(total.seconds, 0);
}

// 3 queries at key positions 2, 3, 4 of 5 keys see 3 + 4 + 5 keys; without a mask all 15 pairs.
TEST(ProfilingBackend, CountsTheKeysThatQueriesSee) {
  const auto inner = make_backend("cpu");
  Profile profile;
  ProfilingBackend backend(*inner, profile);
  const Tensor q = test::to_device(backend, test::draw(int64_t{3} * 8, 1), {3, 1, 8});
  const Tensor kv = test::to_device(backend, test::draw(int64_t{5} * 8, 2), {5, 1, 8});
  const Tensor spans = test::to_device(backend, std::vector<int32_t>{0, 3, 0, 5}, {1, 4});
  const Tensor o = backend.allocate({3, 1, 8}, DType::f32);
  const auto flops_with = [&](const AttentionArgs& args) {
    const double before = profile.totals()["attention"].cost.flops;
    profile.resume();
    backend.attention(q, kv, kv, spans, args, o, {});
    profile.pause();
    return profile.totals()["attention"].cost.flops - before;
  };
  EXPECT_EQ(flops_with({.causal = true}), 4 * 8 * 12);
  EXPECT_EQ(flops_with({.causal = false}), 4 * 8 * 15);
  EXPECT_EQ(flops_with({.causal = true, .window = 2}), 4 * 8 * 6);
}

// One run with the profile and one without: the same adapter, and the profile holds the kernels of
// a training step but not those that read the model. On the CPU, since a GPU's steps without a
// profile are recorded in rounded sizes, and their sums then come in another order.
TEST(ProfilingBackend, ATrainingRunUnderProfileGivesTheSameAdapterATableAndATrace) {
  const test::TemporaryFolder folder;
  const auto path = [&](const std::string& name) { return (folder.path() / name).string(); };
  test::write_tiny_model(path("model"), "llama", 1);
  write_text_atomically(path("data.jsonl"), "{\"text\": \"hello world\"}\n{\"text\": \"bye\"}\n");
  const auto train = [&](const std::string& output, const std::string& more) {
    std::vector<std::string> arguments = {
        "train",   "--model", path("model"), "--data", path("data.jsonl"), "--output", path(output),
        "--steps", "3",       "--device",    "cpu"};
    if (!more.empty()) {
      arguments.push_back(more);
    }
    return test::run_wick(arguments);
  };
  ASSERT_EQ(train("plain", "").status, 0);
  const test::ProgramResult run = train("profiled", "--profile=" + path("trace.json"));
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(read_text(path("profiled/adapter_model.safetensors")),
            read_text(path("plain/adapter_model.safetensors")));
  for (const char* kernel : {"linears", "lora_backward", "attention_backward", "adamw"}) {
    EXPECT_NE(run.out.find(kernel), std::string::npos) << kernel << " in\n" << run.out;
  }
  const nlohmann::json trace = read_trace(path("trace.json"));
  int steps = 0;
  for (const nlohmann::json& event : trace["traceEvents"]) {
    steps += event["name"] == "adamw" ? 1 : 0;
  }
  EXPECT_EQ(steps, 3);
}

}  // namespace
}  // namespace wick
