// The benchmark cases: what they compute is right, and what they report is what was measured.
#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "bench/case.h"
#include "bench/measure.h"
#include "bench/suite.h"
#include "wick/backend/registry.h"

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

TEST(Cases, EveryLightCaseComputesWhatTheReferenceComputes) {
  const auto backend = make_backend("cpu");
  for (const Case& c : all_cases()) {
    // The products of a whole model are proved by the conformance tests; here they would take long.
    if (c.heavy || c.flops > 1e9) {
      continue;
    }
    const PreparedCase prepared = c.prepare(*backend);
    ASSERT_TRUE(prepared.error) << c.name;
    EXPECT_LE(prepared.error(), kErrorLimit) << c.name;
    prepared.call();
    EXPECT_LE(prepared.error(), kErrorLimit) << c.name << " when called again";
  }
}

TEST(Cases, NamesDiffer) {
  std::set<std::string> names;
  for (const Case& c : all_cases()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
  }
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
