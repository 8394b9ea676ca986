// The pool: each thread has a share of the tasks, handed out by an atomic number that names the
// run.
#include "wick/base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "wick/base/error.h"

namespace wick {

namespace {

thread_local bool inside_task = false;

using Clock = std::chrono::steady_clock;

// What a futex sleep and wake would cost anyway.
constexpr auto kSpin = std::chrono::microseconds(20);
// The longest wait for the end of a run that has no task left to give.
constexpr auto kSpinBesideARun = std::chrono::microseconds(500);

// True as soon as `ready` holds, false once `until(now)` has passed. Where the system has put two
// threads of the pool on one core, yielding lets the one run that has work.
template <class Ready, class Until>
bool spin(Ready ready, Until until) {
  for (;;) {
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
    std::this_thread::yield();
    const Clock::time_point now = Clock::now();
    if (now >= until(now)) {
      return false;
    }
  }
}

}  // namespace

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

// Keeps the workers off the caller's core. Linux likes to wake a thread where its waker runs; with
// runs a few microseconds apart it then leaves both there, for seconds, beside an idle core. Only
// the workers are moved, and only when the caller has moved.
class Placement {
 public:
  explicit Placement(size_t threads) {
#if defined(__linux__)
    CPU_ZERO(&usable_);
    const bool known = sched_getaffinity(0, sizeof(usable_), &usable_) == 0;
    active_ = known && threads <= static_cast<size_t>(CPU_COUNT(&usable_));
#endif
  }

  // Called by the thread that is about to run tasks. A refusal by the system changes nothing but
  // speed.
  void keep_off_caller([[maybe_unused]] std::vector<std::thread>& workers) {
#if defined(__linux__)
    if (!active_) {
      return;
    }
    const int core = sched_getcpu();
    if (core == core_ || core < 0) {
      return;
    }
    core_ = core;
    cpu_set_t others = usable_;
    CPU_CLR(core, &others);
    for (std::thread& worker : workers) {
      pthread_setaffinity_np(worker.native_handle(), sizeof(others), &others);
    }
#endif
  }

 private:
#if defined(__linux__)
  cpu_set_t usable_{};
  bool active_ = false;
  int core_ = -1;  // the caller's at the last run
#endif
};

struct ThreadPool::State {
  // The tasks that a thread begins with. Others take from them when their own are done.
  struct alignas(64) Share {
    // The number of the run in the upper half, the next free task in the lower. A thread claims a
    // task by moving on exactly the ticket it has read. So a worker that the system wakes too late
    // finds nothing to claim, and nobody waits for it.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> end{0};
  };

  explicit State(int threads)
      : shares(static_cast<size_t>(threads)), placement(static_cast<size_t>(threads)) {}

  std::vector<Share> shares;  // by thread; the caller's is the first, and is opened last
  std::vector<std::thread> workers;
  Placement placement;
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::atomic<bool> stop{false};
  std::atomic<int64_t> finished{0};
  std::atomic<int64_t> count{0};
  std::atomic<const std::function<void(int64_t)>*> task{nullptr};
  std::exception_ptr error;

  uint64_t run_number() const {
    return shares.front().ticket.load(std::memory_order_acquire) >> 32;
  }

  void open_run(int64_t tasks, const std::function<void(int64_t)>& body) {
    const uint64_t number = run_number();
    // Closes the ended run before its fields change: nobody may claim its next number with the new
    // body. Whoever reads a new field sees the closed ticket too.
    for (Share& share : shares) {
      share.ticket.store(number << 32 | 0xFFFFFFFFU, std::memory_order_release);
    }
    finished.store(0, std::memory_order_release);
    task.store(&body, std::memory_order_release);
    count.store(tasks, std::memory_order_release);
    const auto threads = static_cast<int64_t>(shares.size());
    // The first threads get what is left over: the caller is there already.
    const auto begin_of = [&](int64_t i) { return (tasks * i + threads - 1) / threads; };
    for (int64_t i = threads - 1; i >= 0; --i) {
      Share& share = shares[i];
      share.end.store(begin_of(i + 1), std::memory_order_release);
      const auto begin = static_cast<uint64_t>(begin_of(i));
      share.ticket.store((number + 1) << 32 | begin, std::memory_order_release);
    }
  }

  // Claims and runs tasks until none is left, those of the thread's own share first.
  void work(size_t thread) {
    inside_task = true;
    for (size_t i = 0; i < shares.size(); ++i) {
      work_off(shares[(thread + i) % shares.size()]);
    }
    inside_task = false;
  }

  void work_off(Share& share) {
    uint64_t claimed = share.ticket.load(std::memory_order_acquire);
    for (;;) {
      const auto index = static_cast<int64_t>(claimed & 0xFFFFFFFFU);
      const int64_t end = share.end.load(std::memory_order_acquire);
      const int64_t all = count.load(std::memory_order_acquire);
      const auto* body = task.load(std::memory_order_acquire);
      if (index >= end) {
        return;
      }
      if (!share.ticket.compare_exchange_weak(claimed, claimed + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
        continue;
      }
      // The ticket was current, and the run cannot end without this task: body and count are its
      // own.
      try {
        (*body)(index);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) {
          error = std::current_exception();
        }
      }
      if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
        const std::lock_guard lock(mutex);
        done.notify_one();
      }
      claimed = share.ticket.load(std::memory_order_acquire);
    }
  }

  // A worker that has come too late for a run waits for its end too. Else it would be asleep again
  // when the next one begins, and come too late for that: of calls as short as a wake-up, one after
  // the other, the caller would do all alone.
  template <class Ready>
  bool spin_for_run(Ready ready) const {
    const Clock::time_point last = Clock::now() + kSpinBesideARun;
    Clock::time_point until = Clock::now() + kSpin;
    return spin(ready, [&](Clock::time_point now) {
      const bool running =
          finished.load(std::memory_order_acquire) < count.load(std::memory_order_acquire);
      if (running && now < last) {
        until = now + kSpin;
      }
      return until;
    });
  }

  void worker_loop(size_t thread) {
    uint64_t seen = 0;
    for (;;) {
      const auto ready = [&] { return run_number() != seen || stop; };
      if (!spin_for_run(ready)) {
        std::unique_lock lock(mutex);
        wake.wait(lock, ready);
      }
      if (stop) {
        return;
      }
      seen = run_number();
      work(thread);
    }
  }
};

ThreadPool::ThreadPool(int threads)
    : state_(std::make_unique<State>(threads > 0 ? threads : usable_cores())) {
  for (size_t i = 1; i < state_->shares.size(); ++i) {
    state_->workers.emplace_back([state = state_.get(), i] { state->worker_loop(i); });
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
  check(count < (int64_t{1} << 31), "thread pool: {} tasks in one run", count);
  s.placement.keep_off_caller(s.workers);
  {
    // Under the lock, so that a worker between its last look and its sleep cannot miss the new run.
    const std::lock_guard lock(s.mutex);
    s.open_run(count, task);
  }
  s.wake.notify_all();
  s.work(0);
  const auto all_finished = [&] { return s.finished.load(std::memory_order_acquire) == count; };
  const Clock::time_point until = Clock::now() + kSpin;
  if (!spin(all_finished, [&](Clock::time_point) { return until; })) {
    std::unique_lock lock(s.mutex);
    s.done.wait(lock, all_finished);
  }
  const std::lock_guard lock(s.mutex);
  if (s.error) {
    std::rethrow_exception(std::exchange(s.error, nullptr));
  }
}

}  // namespace wick
