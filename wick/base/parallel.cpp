// The pool: an atomic counter hands out tasks, an epoch number wakes the workers.
#include "wick/base/parallel.h"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace wick {

namespace {

thread_local bool inside_task = false;

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

// True as soon as `ready` holds within the time a futex sleep and wake would cost anyway.
template <class Ready>
bool spin_for(Ready ready) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point until = Clock::now() + std::chrono::microseconds(20);
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) {
        return true;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  } while (Clock::now() < until);
  return false;
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::atomic<uint64_t> epoch{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> active{0};  // workers that have not finished the current epoch
  std::atomic<bool> stop{false};
  int64_t count = 0;
  const std::function<void(int64_t)>* task = nullptr;
  std::exception_ptr error;

  void work() {
    inside_task = true;
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) {
        break;
      }
      try {
        (*task)(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) {
          error = std::current_exception();
        }
      }
    }
    inside_task = false;
  }

  void worker_loop() {
    uint64_t seen = 0;
    for (;;) {
      const auto ready = [&] { return epoch.load(std::memory_order_acquire) != seen || stop; };
      if (!spin_for(ready)) {
        std::unique_lock lock(mutex);
        wake.wait(lock, ready);
      }
      if (stop) {
        return;
      }
      seen = epoch.load(std::memory_order_acquire);
      work();
      if (active.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  const int total = threads > 0 ? threads : available_cores();
  for (int i = 1; i < total; ++i) {
    state_->workers.emplace_back([state = state_.get()] { state->worker_loop(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) {
    worker.join();
  }
}

int ThreadPool::threads() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& task) {
  State& s = *state_;
  if (count <= 1 || s.workers.empty() || inside_task) {
    for (int64_t i = 0; i < count; ++i) {
      task(i);
    }
    return;
  }
  {
    // Under the lock, so that a worker between its last look and its sleep cannot miss the new
    // epoch.
    const std::lock_guard lock(s.mutex);
    s.task = &task;
    s.count = count;
    s.error = nullptr;
    s.next.store(0, std::memory_order_relaxed);
    s.active.store(static_cast<int>(s.workers.size()), std::memory_order_relaxed);
    s.epoch.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.work();
  const auto finished = [&] { return s.active.load(std::memory_order_acquire) == 0; };
  if (!spin_for(finished)) {
    std::unique_lock lock(s.mutex);
    s.done.wait(lock, finished);
  }
  if (s.error) {
    std::rethrow_exception(s.error);
  }
}

}  // namespace wick
