// A pool of threads for data-parallel loops.
//
// `run(count, task)` calls task(i) once for each i in [0, count); the caller works too. A thread
// begins with its own share, the same in every run of that count, for what its cache still holds;
// then it helps others. So a task must own its outputs: results then do not depend on the number of
// threads. A waiting thread spins at most some 100 us after a run, and then blocks, so a busy
// machine is not burnt; and a run waits for its tasks, not for threads that the system has not
// scheduled. Where there are cores enough, the pool's own threads keep off the core that the caller
// runs on (Linux); the caller itself is left where it is. One `run` at a time; a `run` inside a
// task executes serially in that thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace wick {

// Cores that this process may use.
int usable_cores();

class ThreadPool {
 public:
  // threads = 0 takes one a core that this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // The first exception that a task throws is rethrown here once all tasks have ended.
  void run(int64_t count, const std::function<void(int64_t)>& task);
  // The same; a task is also told which thread runs it, from 0 (the caller) to threads() - 1, for
  // what a thread keeps from one task to the next. A serial run is of thread 0 alone.
  void run_by_thread(int64_t count, const std::function<void(int64_t, int)>& task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wick
