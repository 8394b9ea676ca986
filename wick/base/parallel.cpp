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

constexpr size_t kCacheLine = 64;

// What a sleep and a wake cost on a virtual machine: 20-80 us until the worker runs, and 6-15 us of
// the caller, who asks for it.
constexpr auto kSpin = std::chrono::microseconds(100);
// The longest wait for the end of a run that has no task left to give.
constexpr auto kSpinBesideARun = std::chrono::microseconds(500);

// True as soon as `ready` holds, false once `until(now)` has passed. Where the system has put two
// threads of the pool on one core, yielding lets the one run that has work.
template <class Ready, class Until>
bool spin(Ready ready, Until until) {
  for (;;) {
    for (int i = 0; i < 128; ++i) {
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
  using Body = std::function<void(int64_t, int)>;

  // The tasks that a thread begins with. Others take from them when their own are done.
  struct alignas(kCacheLine) Share {
    // The number of the run in the upper half, the next free task in the lower. A thread claims a
    // task by moving on exactly the ticket it has read. So a worker that the system wakes too late
    // finds nothing to claim, and nobody waits for it.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> end{0};
  };

  explicit State(int threads)
      : shares(static_cast<size_t>(threads)), placement(static_cast<size_t>(threads)) {}

  // What all threads read during a run, what they write, and what sleeping needs lie on lines of
  // their own: a line that another core has just written takes some 100 ns to come back.
  std::vector<Share> shares;  // by thread; the caller's is the first, and is opened last
  std::atomic<int64_t> count{0};
  std::atomic<const Body*> task{nullptr};
  alignas(kCacheLine) std::atomic<int64_t> finished{0};
  alignas(kCacheLine) std::atomic<int> sleeping_workers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::vector<std::thread> workers;
  Placement placement;

  uint64_t run_number() const { return shares.front().ticket.load() >> 32; }

  // Returns the number of the run.
  uint64_t open_run(int64_t tasks, const Body& body) {
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
      // Sequentially consistent, as are all accesses to what a thread looks at before it sleeps and
      // to what says that it does: one of the two threads then sees what the other has written.
      share.ticket.store((number + 1) << 32 | begin);
    }
    return number + 1;
  }

  void wake_workers() {
    if (sleeping_workers.load() > 0) {
      // A worker that has looked and not yet slept holds the lock.
      { const std::lock_guard lock(mutex); }
      wake.notify_all();
    }
  }

  // Claims and runs tasks of a run until none is left, those of the thread's own share first.
  void work(size_t thread, uint64_t number) {
    inside_task = true;
    for (size_t i = 0; i < shares.size(); ++i) {
      work_off(shares[(thread + i) % shares.size()], static_cast<int>(thread), number);
    }
    inside_task = false;
  }

  // Not of the next run, should that have begun: there too, the thread is to begin with its own.
  void work_off(Share& share, int thread, uint64_t number) {
    int64_t done_here = 0;  // told to the others once, at the end
    int64_t all = 0;
    uint64_t claimed = share.ticket.load(std::memory_order_acquire);
    for (;;) {
      const auto index = static_cast<int64_t>(claimed & 0xFFFFFFFFU);
      const int64_t end = share.end.load(std::memory_order_acquire);
      const int64_t tasks = count.load(std::memory_order_acquire);
      const Body* body = task.load(std::memory_order_acquire);
      if (index >= end || claimed >> 32 != number) {
        break;
      }
      if (!share.ticket.compare_exchange_weak(claimed, claimed + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
        continue;
      }
      // The ticket was current, and the run cannot end without this task: body and count are its
      // own.
      try {
        (*body)(index, thread);
      } catch (...) {
        keep_error(std::current_exception());
      }
      ++done_here;
      all = tasks;
      claimed = share.ticket.load(std::memory_order_acquire);
    }
    if (done_here > 0 && finished.fetch_add(done_here) + done_here == all && caller_sleeps.load()) {
      { const std::lock_guard lock(mutex); }
      done.notify_one();
    }
  }

  void keep_error(std::exception_ptr thrown) {
    const std::lock_guard lock(mutex);
    if (!error) {
      error = std::move(thrown);
    }
    failed = true;
  }

  void rethrow_error() {
    if (failed.load(std::memory_order_acquire)) {
      const std::lock_guard lock(mutex);
      failed = false;
      std::rethrow_exception(std::exchange(error, nullptr));
    }
  }

  // Until all tasks of the caller's run have ended.
  void wait_for_end(int64_t tasks) {
    const auto all_finished = [&] { return finished.load() == tasks; };
    if (all_finished()) {
      return;
    }
    const Clock::time_point until = Clock::now() + kSpin;
    if (!spin(all_finished, [&](Clock::time_point) { return until; })) {
      std::unique_lock lock(mutex);
      caller_sleeps = true;
      done.wait(lock, all_finished);
      caller_sleeps = false;
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
        ++sleeping_workers;
        wake.wait(lock, ready);
        --sleeping_workers;
      }
      if (stop) {
        return;
      }
      seen = run_number();
      work(thread, seen);
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
  run_by_thread(count, [&](int64_t i, int) { task(i); });
}

void ThreadPool::run_by_thread(int64_t count, const std::function<void(int64_t, int)>& task) {
  State& s = *state_;
  if (count <= 1 || s.workers.empty() || inside_task) {
    for (int64_t i = 0; i < count; ++i) {
      task(i, 0);
    }
    return;
  }
  check(count < (int64_t{1} << 31), "thread pool: {} tasks in one run", count);
  s.placement.keep_off_caller(s.workers);
  const uint64_t number = s.open_run(count, task);
  s.wake_workers();
  s.work(0, number);
  s.wait_for_end(count);
  s.rethrow_error();
}

}  // namespace wick
