// The pool: each thread has a share of the tasks, handed out by an atomic number that names the
// run.
#include "wick/base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
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

constexpr int kLooksBeforeAYield = 128;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `ready` holds, false once `until(now)` has passed. Where the system has put two
// threads of the pool on one core, yielding lets the one run that has work.
template <class Ready, class Until>
bool spin(Ready ready, Until until) {
  for (;;) {
    for (int i = 0; i < kLooksBeforeAYield; ++i) {
      if (ready()) {
        return true;
      }
      pause();
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

void spin_once() {
  thread_local int looks = 0;
  if (++looks % kLooksBeforeAYield == 0) {
    std::this_thread::yield();
  } else {
    pause();
  }
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

// Its parts lie on lines of their own.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
struct ThreadPool::State {
  // What a thread needs of a run, on one line, which it watches while it waits: a line that another
  // core has just written takes 60 ns to come over, or 240 between two parts of a processor.
  // NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
  struct alignas(kCacheLine) Share {
    // The number of the run in the upper half, the next free task in the lower. A thread claims a
    // task by moving on exactly the ticket it has read. So a worker that the system wakes too late
    // finds nothing to claim, and nobody waits for it.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> end{0};  // of the tasks that the thread begins with; others take from them
    std::atomic<const void*> body{nullptr};
    std::atomic<TaskRef::Call> call{nullptr};
    // The number of the run, and how many of its tasks the thread has done, of any share. Written
    // by this thread alone. On a line of its own: the caller watches it while the thread works.
    alignas(kCacheLine) std::atomic<uint64_t> done{0};
  };

  // A closure on the caller's stack lies beside much that the caller writes before the next run,
  // and each of its lines would then have to be fetched back first.
  struct alignas(kCacheLine) Body {
    std::array<std::byte, 5 * kCacheLine> bytes;
  };

  explicit State(int threads)
      : shares(static_cast<size_t>(threads)), placement(static_cast<size_t>(threads)) {}

  std::vector<Share> shares;  // by thread; the caller's is the first
  std::exception_ptr error;
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::vector<std::thread> workers;
  Placement placement;
  alignas(kCacheLine) uint32_t number = 0;  // of the last run; the caller's alone
  std::array<Body, 2> bodies{};             // of even and odd runs
  // What ends, sleeping and waking need lies apart from what a run writes, by who writes it.
  alignas(kCacheLine) std::atomic<uint32_t> ended{0};  // the number of the last run that ended
  std::atomic<int> sleeping_workers{0};                // the caller's but for a moment
  alignas(kCacheLine) std::atomic<int> sleeping_callers{0};  // the workers' likewise
  alignas(kCacheLine) std::atomic<bool> stop{false};
  std::atomic<bool> failed{false};

  static uint64_t ticket_of(uint32_t run, uint32_t tasks) { return uint64_t{run} << 32 | tasks; }
  static uint32_t run_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

  const void* shared_body(TaskRef task) {
    Body& own = bodies[number % 2];
    if (task.copied_bytes() == 0 || task.copied_bytes() > sizeof(own.bytes)) {
      return task.body();
    }
    std::memcpy(own.bytes.data(), task.body(), task.copied_bytes());
    return own.bytes.data();
  }

  // Asks for the lines that the next run's body will be written to, which workers have read.
  void fetch_next_body() {
    std::array<std::byte, sizeof(Body)>& bytes = bodies[(number + 1) % 2].bytes;
    for (size_t at = 0; at < bytes.size(); at += kCacheLine) {
      __builtin_prefetch(&bytes[at], 1);
    }
  }

  void open_run(int64_t tasks, TaskRef task) {
    ++number;
    const void* body = shared_body(task);
    const auto threads = static_cast<int64_t>(shares.size());
    // The first threads get what is left over: the caller is there already.
    const auto begin_of = [&](int64_t i) { return (tasks * i + threads - 1) / threads; };
    for (int64_t i = threads - 1; i >= 0; --i) {
      Share& share = shares[i];
      // Closes the ended run before its fields change: nobody may claim its next number with the
      // new body. Whoever reads a new field sees the closed ticket too.
      share.ticket.store(ticket_of(number - 1, 0xFFFFFFFFU), std::memory_order_release);
      share.body.store(body, std::memory_order_release);
      share.call.store(task.call(), std::memory_order_release);
      share.end.store(begin_of(i + 1), std::memory_order_release);
      const auto begin = static_cast<uint32_t>(begin_of(i));
      share.ticket.store(ticket_of(number, begin), std::memory_order_release);
    }
  }

  // A thread that is about to sleep adds itself to a count and looks once more; the other changes
  // what it looks at and then reads the count by adding nothing to it. Whichever of the two comes
  // second to the count sees what the first has done before.
  void wake_workers() {
    if (sleeping_workers.fetch_add(0) > 0) {
      // A worker that has looked and not yet slept holds the lock.
      { const std::lock_guard lock(mutex); }
      wake.notify_all();
    }
  }

  void wake_caller() {
    if (sleeping_callers.fetch_add(0) > 0) {
      { const std::lock_guard lock(mutex); }
      done.notify_one();
    }
  }

  // Claims and runs tasks of a run until none is left, those of the thread's own share first.
  void work(size_t thread, uint32_t run) {
    inside_task = true;
    uint32_t done_here = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      const uint32_t before = done_here;
      const size_t at = thread + i < shares.size() ? thread + i : thread + i - shares.size();
      work_off(shares[at], static_cast<int>(thread), run, done_here);
      if (done_here > before) {  // told to the others once a share
        shares[thread].done.store(ticket_of(run, done_here), std::memory_order_release);
      }
    }
    inside_task = false;
  }

  // Not of the next run, should that have begun: there too, the thread is to begin with its own.
  void work_off(Share& share, int thread, uint32_t run, uint32_t& done_here) {
    uint64_t claimed = share.ticket.load(std::memory_order_acquire);
    for (;;) {
      const auto index = static_cast<int64_t>(claimed & 0xFFFFFFFFU);
      const int64_t end = share.end.load(std::memory_order_acquire);
      const TaskRef task(share.body.load(std::memory_order_acquire),
                         share.call.load(std::memory_order_acquire));
      if (index >= end || run_of(claimed) != run) {
        return;
      }
      if (!share.ticket.compare_exchange_weak(claimed, claimed + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
        continue;
      }
      // The ticket was current, and the run cannot end without this task: the task is its own.
      try {
        task(index, {thread, done_here == 0});
      } catch (...) {
        keep_error(std::current_exception());
      }
      ++done_here;
      claimed = share.ticket.load(std::memory_order_acquire);
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
    const auto all_done = [&] {
      int64_t sum = 0;
      for (const Share& share : shares) {
        const uint64_t of_thread = share.done.load(std::memory_order_acquire);
        sum += run_of(of_thread) == number ? static_cast<uint32_t>(of_thread) : 0;
      }
      return sum == tasks;
    };
    if (!all_done()) {
      const Clock::time_point until = Clock::now() + kSpin;
      if (!spin(all_done, [&](Clock::time_point) { return until; })) {
        std::unique_lock lock(mutex);
        ++sleeping_callers;
        done.wait(lock, all_done);
        --sleeping_callers;
      }
    }
    ended.store(number, std::memory_order_release);
  }

  // A worker that has come too late for a run waits for its end too. Else it would be asleep again
  // when the next one begins, and come too late for that: of calls as short as a wake-up, one after
  // the other, the caller would do all alone.
  template <class Ready>
  bool spin_for_run(uint32_t seen, Ready ready) const {
    const Clock::time_point last = Clock::now() + kSpinBesideARun;
    Clock::time_point until = Clock::now() + kSpin;
    return spin(ready, [&](Clock::time_point now) {
      const bool running = ended.load(std::memory_order_acquire) != seen;
      if (running && now < last) {
        until = now + kSpin;
      }
      return until;
    });
  }

  void worker_loop(size_t thread) {
    uint32_t seen = 0;
    const auto run = [&] { return run_of(shares[thread].ticket.load(std::memory_order_acquire)); };
    for (;;) {
      const auto ready = [&] { return run() != seen || stop; };
      if (!spin_for_run(seen, ready)) {
        std::unique_lock lock(mutex);
        ++sleeping_workers;
        wake.wait(lock, ready);
        --sleeping_workers;
      }
      if (stop) {
        return;
      }
      seen = run();
      work(thread, seen);
      wake_caller();
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

void ThreadPool::run(int64_t count, TaskRef task) {
  State& s = *state_;
  if (count <= 1 || s.workers.empty() || inside_task) {
    for (int64_t i = 0; i < count; ++i) {
      task(i, {0, i == 0});
    }
    return;
  }
  check(count < (int64_t{1} << 31), "thread pool: {} tasks in one run", count);
  s.placement.keep_off_caller(s.workers);
  s.open_run(count, task);
  s.wake_workers();
  s.work(0, s.number);
  s.fetch_next_body();
  s.wait_for_end(count);
  s.rethrow_error();
}

}  // namespace wick
