// Exchanges between processes: mpirun starts this program three times, and each runs every test.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "tests/support/host_tensor.h"
#include "tests/support/message_of.h"
#include "wick/backend/registry.h"

namespace wick {
namespace {

// MPI can be started once in a process. Made before the first test and ended after the last.
class Processes : public testing::Environment {
 public:
  explicit Processes(std::unique_ptr<Communicator>& ranks) : ranks_(ranks) {}
  void SetUp() override { ranks_ = join_processes(); }
  void TearDown() override { ranks_.reset(); }

 private:
  std::unique_ptr<Communicator>& ranks_;
};

std::unique_ptr<Communicator> ranks;
const testing::Environment* const kProcesses =
    testing::AddGlobalTestEnvironment(new Processes(ranks));

TEST(MpiCommunicator, KnowsItsPlace) {
  const Place& place = ranks->place();
  EXPECT_EQ(place.size, 3);
  EXPECT_EQ(place.local_rank, place.rank);
  EXPECT_GE(place.core_sharers, 1);
  EXPECT_LE(place.core_sharers, 3);
}

TEST(MpiCommunicator, GathersByRank) {
  EXPECT_EQ(ranks->gather(ranks->place().rank * 1.5), (std::vector<double>{0, 1.5, 3}));
}

TEST(MpiCommunicator, BroadcastsFromRankZero) {
  const std::string mine(static_cast<size_t>(ranks->place().rank), 'x');
  EXPECT_EQ(broadcast_text(*ranks, ranks->place().rank == 0 ? "from rank 0" : mine), "from rank 0");
  EXPECT_EQ(broadcast_text(*ranks, ""), "");
}

// More than one part of a long tensor, fewer elements than processes, and none.
TEST(MpiCommunicator, SumsInTheOrderOfRanks) {
  const auto backend = make_backend("cpu", {.threads = 1});
  for (const int64_t count : {int64_t{0}, int64_t{2}, int64_t{1000}, (int64_t{1} << 24) + 5}) {
    const auto values_of = [&](int rank) {
      std::vector<float> values(static_cast<size_t>(count));
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = 1.0F / static_cast<float>(1 + (i + 1) * static_cast<size_t>(rank + 7) % 1009);
      }
      return values;
    };
    std::vector<float> expected = values_of(0);
    for (int r = 1; r < ranks->place().size; ++r) {
      const std::vector<float> addend = values_of(r);
      std::transform(expected.begin(), expected.end(), addend.begin(), expected.begin(),
                     std::plus<>());
    }
    const Tensor tensor = test::to_device(*backend, values_of(ranks->place().rank), {count});
    ranks->sum(*backend, tensor);
    EXPECT_TRUE(test::to_host(*backend, tensor) == expected) << count;
  }
}

// The last test: nothing can be exchanged after it.
TEST(MpiCommunicatorEnd, AnErrorOfOneIsTheErrorOfAll) {
  const int rank = ranks->place().rank;
  const auto work = [&] {
    check(rank != 1, "no more paper");
    ranks->gather(0);
  };
  const std::string message = test::message_of([&] { together(*ranks, work); });
  EXPECT_EQ(message, rank == 1 ? "no more paper" : "rank 1: no more paper");
  EXPECT_EQ(ranks->speaks(), rank == 0);
  ranks->tell_failure("too late to be heard, and waits for nobody");
}

}  // namespace
}  // namespace wick
