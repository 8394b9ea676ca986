// The benchmark cases: what they compute is right, and what they report is what was measured.
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#include "bench/builders.h"
#include "bench/case.h"
#include "bench/decoding.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/suite.h"
#include "wick/backend/profiling_backend.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/base/parallel.h"

namespace wick::bench {
namespace {

TEST(Timing, MedianAndMinimumOfOddAndEvenCounts) {
  EXPECT_DOUBLE_EQ((Timing{{3, 1, 2}}).median(), 2);
  EXPECT_DOUBLE_EQ((Timing{{4, 1, 2, 9}}).median(), 3);
  EXPECT_DOUBLE_EQ((Timing{{3, 1, 2}}).minimum(), 1);
}

TEST(Measure, CandidatesTakeTurns) {
  std::string order;
  const std::vector<std::function<void()>> calls = {[&] { order += 'a'; }, [&] { order += 'b'; }};
  const std::vector<Timing> timings =
      measure_interleaved(calls, {.minimum_samples = 3, .minimum_seconds = 0, .warm_up_calls = 1});
  EXPECT_EQ(order, "abababab");
  EXPECT_EQ(timings[0].seconds.size(), 3U);
  EXPECT_EQ(timings[1].seconds.size(), 3U);
}

// However long the system makes the calls wait.
TEST(Measure, ATurnIsWarmedUpAndAsLongAsAsked) {
  using Clock = std::chrono::steady_clock;
  constexpr double kWarmUp = 0.02;
  constexpr double kTurn = 0.03;
  std::vector<double> lasted;
  const std::function<void()> call = [&] {
    const Clock::time_point start = Clock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    lasted.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  };
  const Timing timing = measure(call, {.minimum_samples = 1,
                                       .minimum_seconds = 0,
                                       .warm_up_calls = 1,
                                       .warm_up_seconds = kWarmUp,
                                       .samples_of_turn = 2,
                                       .seconds_of_turn = kTurn});
  const size_t samples = timing.seconds.size();
  ASSERT_GT(lasted.size(), samples);
  lasted.resize(lasted.size() - samples);  // to warm up
  const auto sum = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0);
  };
  EXPECT_GE(sum(lasted), kWarmUp - 1e-3) << "the clock's own time";
  EXPECT_LT(sum(lasted) - lasted.back(), kWarmUp) << "one call too many";
  EXPECT_GE(samples, 2U);
  EXPECT_GE(sum(timing.seconds), kTurn);
  if (samples > 2) {
    EXPECT_LT(sum(timing.seconds) - timing.seconds.back(), kTurn) << "one sample too many";
  }
}

TEST(Cases, EveryLightCaseComputesWhatTheReferenceComputes) {
  const auto backend = make_backend("cpu");
  for (const Case& c : all_cases()) {
    // The products of a whole model are proved by the conformance tests; here they would take long.
    if (c.heavy || c.flops > 1e9) {
      continue;
    }
    const PreparedCase prepared = c.prepare(*backend);
    ASSERT_TRUE(prepared.error) << c.name;
    EXPECT_LE(prepared.error(), c.error_limit) << c.name;
    prepared.call();
    EXPECT_LE(prepared.error(), c.error_limit) << c.name << " when called again";
  }
}

// Where the back end has no activations in bf16, they are f32 here.
TEST(Cases, EveryLightCaseOfGpusComputesWhatTheReferenceComputes) {
  for (const std::string_view device : backend_names()) {
    const auto backend = make_backend(device);
    for (const Case& c : gpu_cases()) {
      if (c.heavy || c.flops > 1e9 || c.name.ends_with("in=graph")) {
        continue;
      }
      const PreparedCase prepared = c.prepare(*backend);
      ASSERT_TRUE(prepared.error && prepared.work) << c.name;
      EXPECT_LE(prepared.error(), c.error_limit) << device << " " << c.name;
    }
  }
}

// Those of the list are too large for a CPU in the time of a test.
TEST(Cases, AttentionComputesWhatTheReferenceComputes) {
  for (const std::string_view device : backend_names()) {
    const auto backend = make_backend(device);
    for (const bool gradients : {false, true}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const Case c =
            attention_case({.B = 2, .T = 80, .H = 4, .G = 2, .D = 64, .dtype = dtype}, gradients);
        EXPECT_LE(c.prepare(*backend).error(), c.error_limit) << device << " " << c.name;
      }
    }
  }
}

TEST(Decoding, EachPairIsATokenWithoutAndOneWithTheAdapter) {
  NamedShape tiny = model_shapes().front();
  tiny.config.vocab_size = 1000;
  tiny.config.hidden_size = 64;
  tiny.config.intermediate_size = 128;
  tiny.config.num_layers = 2;
  tiny.config.num_heads = 2;
  tiny.config.num_kv_heads = 1;
  tiny.config.head_dim = 32;
  const auto backend = make_backend("cpu", {.threads = 2});
  ThreadPool readers(2);
  std::ostringstream table;
  const auto result = run_decoding(*backend, readers, tiny, 3, table);
  for (const char* values : {"base_seconds", "adapted_seconds", "base_read_gbs"}) {
    ASSERT_EQ(result[values].size(), 3U) << values;
    for (const double value : result[values]) {
      EXPECT_GT(value, 0) << values;
    }
  }
  // 16 ranks of four bytes on the sides of seven layers: q, k, v, o, gate, up, down.
  const int sides = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128);
  EXPECT_EQ(result["adapter_bytes_of_token"], 2 * 16 * 4 * sides);
  EXPECT_NE(table.str().find("by pairs"), std::string::npos);
}

TEST(Cases, InAGraphTheTimeIsThatOfOnePieceOfTheWork) {
  int works = 0;
  Case counted{.name = "count:n=1"};
  counted.prepare = [&works](Backend&) {
    PreparedCase prepared;
    prepared.work = [&works] { ++works; };
    return prepared;
  };
  const auto backend = make_backend("cpu");
  const Case c = in_graph(counted);
  EXPECT_EQ(c.name, "count:n=1,in=graph");
  const PreparedCase prepared = c.prepare(*backend);
  prepared.call();
  EXPECT_EQ(works, prepared.repeats);
}

TEST(Cases, NamesDiffer) {
  for (const auto& list : {all_cases(), gpu_cases()}) {
    std::set<std::string> names;
    for (const Case& c : list) {
      EXPECT_TRUE(names.insert(c.name).second) << c.name;
    }
  }
}

TEST(DeviceLimits, AreMeasuredThroughTheBackEnd) {
  const auto backend = make_backend("cpu");
  const MachineLimits limits =
      measure_device(*backend, {.bf16_product = 64, .f32_product = 64, .copy_bytes = 1 << 20});
  EXPECT_FALSE(limits.processor.empty());
  EXPECT_GT(limits.matmul_gflops, 0);
  EXPECT_GT(limits.fma_gflops_all, 0);
  EXPECT_GT(limits.read_gbs_all, 0);
  EXPECT_GT(limits.kernel_seconds, 0);
}

TEST(Suite, UnderAProfileTheTimedCallsAloneAreCounted) {
  const auto inner = make_backend("cpu");
  Profile profile;
  ProfilingBackend backend(*inner, profile);
  std::ostringstream table;
  const auto record =
      run_suite(backend, {.fma_gflops_all = 1, .read_gbs_all = 1},
                {.suite = "training", .filter = "adamw:", .profile = &profile}, table);
  ASSERT_EQ(record["cases"].size(), 1U);
  ASSERT_EQ(record["profile"]["kernels"].size(), 1U);
  const auto& kernel = record["profile"]["kernels"][0];
  EXPECT_EQ(kernel["kernel"], "adamw");
  EXPECT_EQ(kernel["calls"], record["cases"][0]["seconds"].size());
  EXPECT_NE(table.str().find("adamw:n=262144"), std::string::npos);
}

TEST(Suite, ScalingTimesOnlyCasesThatAreWorthASecondThread) {
  const auto one = make_backend("cpu", {.threads = 1});
  const auto all = make_backend("cpu", {.threads = 2});
  ThreadPool pool(2);
  std::ostringstream table;
  EXPECT_EQ(run_scaling(*one, *all, pool, {.filter = "rms_norm"}, table)["cases"].size(), 0U);
  const auto record = run_scaling(*one, *all, pool, {.filter = "lora_delta:T=64,d=512,r=8"}, table);
  ASSERT_EQ(record["cases"].size(), 1U);
  constexpr size_t kPasses = 9;
  constexpr size_t kTurn = 20;
  EXPECT_GE(record["cases"][0]["one_seconds"].size(), kPasses * kTurn);
  EXPECT_GE(record["cases"][0]["all_seconds"].size(), kPasses * kTurn);
  EXPECT_GE(record["cases"][0]["bare_one_seconds"].size(), kPasses * kTurn);
  EXPECT_GE(record["cases"][0]["bare_all_seconds"].size(), kPasses * kTurn);
}

TEST(Suite, NamesWhatNoCaseHas) {
  const auto backend = make_backend("cpu");
  EXPECT_THROW(repeat_cases(*backend, {.filter = "no_such_case"}, 1), Error);
  EXPECT_THROW(repeat_cases(*backend, {.filter = "train_step"}, 1), Error) << "a whole model";
}

// Kernels are proved against f32; models are timed as `wick train` and `wick generate` run them.
TEST(Suite, OnlyWholeModelsRunAtThePrecisionOfTheProgram) {
  const auto exact = make_backend("cpu");
  const auto models = make_backend("cpu", {.matmul_precision = MatmulPrecision::medium});
  const Devices devices(*exact, *models);
  int found = 0;
  for (const Case& c : all_cases()) {
    const bool model = c.name.find(":shape=") != std::string::npos;
    found += model ? 1 : 0;
    EXPECT_EQ(&devices.of(c), model ? models.get() : exact.get()) << c.name;
  }
  EXPECT_GT(found, 0);
}

TEST(Worker, AnswersLineByLineWithAsManySamplesAsAsked) {
  const auto backend = make_backend("cpu");
  std::istringstream in(
      "{\"info\": true}\n"
      "{\"case\": \"lora_delta:T=64,d=512,r=8\", \"samples\": 4}\n"
      "{\"case\": \"no_such_case\", \"samples\": 4}\n");
  std::ostringstream out;
  answer_requests(*backend, 2, in, out);
  std::istringstream lines(out.str());
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(nlohmann::json::parse(line)["name"], "wick");
  std::getline(lines, line);
  const auto seconds = nlohmann::json::parse(line)["seconds"];
  ASSERT_EQ(seconds.size(), 4U);
  EXPECT_GT(seconds[0].get<double>(), 0.0);
  std::getline(lines, line);
  EXPECT_EQ(nlohmann::json::parse(line)["unavailable"], "no such case");
}

}  // namespace
}  // namespace wick::bench
