// Errors, files, random numbers and the thread pool.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/support/test_data.h"
#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/parallel.h"
#include "wick/base/random.h"

namespace wick {
namespace {

TEST(Error, CheckNamesBothValues) {
  try {
    check(false, "matmul: inner sizes differ: {} and {}", 3, 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "matmul: inner sizes differ: 3 and 4");
  }
}

TEST(Random, GivesThePublishedPhiloxVectors) {
  // Known answers of Random123's kat_vectors, philox4x32 10 rounds.
  EXPECT_EQ(Random(0, 0).block(0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Random(~uint64_t{0}, ~uint64_t{0}).block(~uint64_t{0}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, NormalHasUnitVariance) {
  const Random random(7, 1);
  double sum = 0;
  double squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double draw = random.normal(i);
    sum += draw;
    squares += draw * draw;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.03);
  EXPECT_NEAR(squares / kDraws, 1.0, 0.03);
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> hits(round);
      pool.run(round, [&](int64_t i) { ++hits[i]; });
      for (const std::atomic<int>& hit : hits) {
        ASSERT_EQ(hit, 1);
      }
    }
  }
}

TEST(ThreadPool, TellsEachTaskWhichThreadRunsItAndWhetherForTheFirstTime) {
  ThreadPool pool(3);
  const std::thread::id caller = std::this_thread::get_id();
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<std::thread::id> ids(3);  // by thread: its first task's
    std::vector<int> wrong(24);
    pool.run(24, [&](int64_t i, TaskThread thread) {
      const std::thread::id id = std::this_thread::get_id();
      const bool first = ids[thread.index] == std::thread::id();
      if (first) {
        ids[thread.index] = id;
      }
      wrong[i] = ids[thread.index] != id || (thread.index == 0) != (id == caller) ||
                 thread.first_task != first;
      pool.run(2, [&](int64_t inner_task, TaskThread inner) {
        wrong[i] += inner.index != 0 || inner.first_task != (inner_task == 0);
      });
    });
    EXPECT_EQ(std::accumulate(wrong.begin(), wrong.end(), 0), 0);
  }
}

// Small closures of plain bytes are called as a copy, all others where they are.
TEST(ThreadPool, CallsClosuresOfEveryKind) {
  ThreadPool pool(3);
  constexpr int64_t kTasks = 7;
  for (int64_t round = 0; round < 2000; ++round) {
    std::array<int64_t, kTasks> got{};
    int64_t* to = got.data();
    std::array<int64_t, 8> few{};
    std::array<int64_t, 100> many{};
    few.back() = round;
    many.back() = round + 1;
    const std::vector<int64_t> owned = {round + 2};
    pool.run(kTasks, [few, to](int64_t i) { to[i] += few.back(); });
    pool.run(kTasks, [many, to](int64_t i) { to[i] += many.back(); });
    pool.run(kTasks, [owned, to](int64_t i) { to[i] += owned.back(); });
    pool.run(kTasks, [&](int64_t i) { to[i] += i; });
    for (int64_t i = 0; i < kTasks; ++i) {
      ASSERT_EQ(got[i], 3 * round + 3 + i);
    }
  }
}

TEST(ThreadPool, WaitsForTasksThatOutlastItsSpinning) {
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::atomic<int> ended = 0;
    pool.run(4, [&](int64_t) {
      const bool slow = std::this_thread::get_id() != caller;
      std::this_thread::sleep_for(std::chrono::microseconds(slow ? 3000 : 300));
      ++ended;
    });
    EXPECT_EQ(ended, 4);
  }
}

TEST(ThreadPool, LateWorkersTakeNothingOfALaterRun) {
  // Runs of changing size in quick succession, so that workers often wake when theirs is over.
  ThreadPool pool(4);
  for (int round = 0; round < 20000; ++round) {
    const int64_t count = 2 + round % 5;
    std::atomic<int64_t> sum = 0;
    pool.run(count, [&](int64_t i) { sum += i + 1; });
    ASSERT_EQ(sum, count * (count + 1) / 2);
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run(10, [](int64_t i) { check(i != 5, "task {}", i); }), Error);
  std::atomic<int> sum = 0;
  pool.run(4, [&](int64_t i) { sum += static_cast<int>(i); });
  EXPECT_EQ(sum, 6);
}

#if defined(__linux__)
cpu_set_t allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  return set;
}

TEST(ThreadPool, WorkersKeepOffTheCoreOfTheCaller) {
  const cpu_set_t before = allowed_cores();
  if (CPU_COUNT(&before) < 2) {
    GTEST_SKIP() << "only one core may be used here";
  }
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &before)) {
      continue;
    }
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(core, &here);
    ASSERT_EQ(sched_setaffinity(0, sizeof(here), &here), 0);
    std::mutex mutex;
    std::vector<cpu_set_t> sets;  // of the worker's tasks
    for (int attempt = 0; attempt < 1000 && sets.empty(); ++attempt) {
      pool.run(2, [&](int64_t) {
        if (std::this_thread::get_id() == caller) {
          // Long enough for the worker to come.
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          return;
        }
        const std::lock_guard lock(mutex);
        sets.push_back(allowed_cores());
      });
    }
    ASSERT_FALSE(sets.empty());
    EXPECT_FALSE(CPU_ISSET(core, &sets.front())) << core;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}
#endif

TEST(MappedFile, ForgottenBytesAreStillThere) {
  const test::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "bytes";
  std::string text(size_t{1} << 20, '\0');
  for (size_t i = 0; i < text.size(); ++i) {
    text[i] = static_cast<char>(i * 7 + i / 4096);
  }
  std::ofstream(path, std::ios::binary) << text;
  const MappedFile file(path);
  const auto content = [&] {
    return std::string_view(reinterpret_cast<const char*>(file.bytes().data()),
                            file.bytes().size());
  };
  EXPECT_EQ(content(), text);
  file.forget(file.bytes().subspan(1, text.size() - 2));
  EXPECT_EQ(content(), text);
  file.forget(file.bytes().subspan(0, 0));
}

TEST(AtomicFile, KeepsTheOldFileUnlessCommitted) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "a.txt";
  write_text_atomically(path, "old");
  {
    AtomicFile file(path);
    file.write(std::string_view("new"));
  }
  EXPECT_EQ(read_text(path), "old");
  write_text_atomically(path, "new");
  EXPECT_EQ(read_text(path), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(AtomicFile, AFullDiskLeavesTheOldFileWhole) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "a.txt";
  write_text_atomically(path, "old");
  // A file size limit in a child process stands in for the full disk: the write fails part way in
  // the same manner.
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    static_cast<void>(::signal(SIGXFSZ, SIG_IGN));
    try {
      write_text_atomically(path, std::string(5000, 'x'));
    } catch (const Error& error) {
      ::_exit(std::string(error.what()).find("cannot write") != std::string::npos ? 7 : 8);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(read_text(path), "old");
}

TEST(ReadText, NamesThePath) {
  EXPECT_THROW(
      {
        try {
          read_text("/no/such/file");
        } catch (const Error& error) {
          EXPECT_STREQ(error.what(), "/no/such/file: cannot open: No such file or directory");
          throw;
        }
      },
      Error);
}

}  // namespace
}  // namespace wick
