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

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace wick {

// Cores that this process may use.
int usable_cores();

// A moment of a waiting thread's time; now and then given to whoever else would use the core.
void spin_once();

// Who runs a task.
struct TaskThread {
  int index;        // from 0 (the caller) to threads() - 1; of a serial run 0
  bool first_task;  // of the run in this thread: for what a thread prepares once
};

// Refers to what is called for each task, task(i) or task(i, thread), and does not own it: a run
// costs no allocation. What is small and only bytes may be called as a copy of them.
class TaskRef {
 public:
  using Call = void (*)(const void* body, int64_t i, TaskThread thread);
  static constexpr size_t kMostAlignment = 64;  // of what is copied

  template <class Body>
  requires std::invocable<const Body&, int64_t> || std::invocable<const Body&, int64_t, TaskThread>
  TaskRef(const Body& body)  // NOLINT(google-explicit-constructor)
      : body_(&body),
        copied_bytes_(std::is_trivially_copyable_v<Body> && alignof(Body) <= kMostAlignment
                          ? sizeof(Body)
                          : 0),
        call_([](const void* object, int64_t i, TaskThread thread) {
          const Body& typed = *static_cast<const Body*>(object);
          if constexpr (std::invocable<const Body&, int64_t, TaskThread>) {
            typed(i, thread);
          } else {
            typed(i);
          }
        }) {}
  TaskRef(const void* body, Call how) : body_(body), call_(how) {}

  void operator()(int64_t i, TaskThread thread) const { call_(body_, i, thread); }
  const void* body() const { return body_; }
  // Of the body, where a copy of its bytes serves as well; else 0.
  size_t copied_bytes() const { return copied_bytes_; }
  Call call() const { return call_; }

 private:
  const void* body_;
  size_t copied_bytes_ = 0;
  Call call_;
};

// Waits for what another task of the same run is doing, which that will have done soon. A task may
// only wait for one that has begun.
template <class Ready>
void spin_until(const Ready& ready) {
  while (!ready()) {
    spin_once();
  }
}

class ThreadPool {
 public:
  // threads = 0 takes one a core that this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // The first exception that a task throws is rethrown here once all tasks have ended.
  void run(int64_t count, TaskRef task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wick
