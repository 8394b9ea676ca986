// Measures the multiply-add peak and the memory bandwidth with the same SIMD dispatch that the
// kernels use.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/machine.cpp"
#include <hwy/foreach_target.h>
// (after foreach_target)
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace wick::bench::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// `rounds` times sixteen independent multiply-adds a lane; returns the flops done. The sum goes to
// `sink` so that nothing is optimised away.
double multiply_add(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const V scale = hn::Set(d, 0.999999F);
  const V shift = hn::Set(d, 1e-6F);
  // Different starts: equal chains would be merged into one by the compiler.
  V a0 = hn::Set(d, 1.0F);
  V a1 = hn::Set(d, 2.0F);
  V a2 = hn::Set(d, 3.0F);
  V a3 = hn::Set(d, 4.0F);
  V a4 = hn::Set(d, 5.0F);
  V a5 = hn::Set(d, 6.0F);
  V a6 = hn::Set(d, 7.0F);
  V a7 = hn::Set(d, 8.0F);
  V a8 = hn::Set(d, 9.0F);
  V a9 = hn::Set(d, 10.0F);
  V a10 = hn::Set(d, 11.0F);
  V a11 = hn::Set(d, 12.0F);
  for (int64_t i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, scale, shift);
    a1 = hn::MulAdd(a1, scale, shift);
    a2 = hn::MulAdd(a2, scale, shift);
    a3 = hn::MulAdd(a3, scale, shift);
    a4 = hn::MulAdd(a4, scale, shift);
    a5 = hn::MulAdd(a5, scale, shift);
    a6 = hn::MulAdd(a6, scale, shift);
    a7 = hn::MulAdd(a7, scale, shift);
    a8 = hn::MulAdd(a8, scale, shift);
    a9 = hn::MulAdd(a9, scale, shift);
    a10 = hn::MulAdd(a10, scale, shift);
    a11 = hn::MulAdd(a11, scale, shift);
  }
  const V sum = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)),
                        hn::Add(hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)),
                                hn::Add(hn::Add(a8, a9), hn::Add(a10, a11))));
  *sink = hn::GetLane(sum);
  return 2.0 * 12.0 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

void read_sum(const float* from, int64_t count, float* sink) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = hn::Add(s0, hn::LoadU(d, from + i));
    s1 = hn::Add(s1, hn::LoadU(d, from + i + lanes));
    s2 = hn::Add(s2, hn::LoadU(d, from + i + 2 * lanes));
    s3 = hn::Add(s3, hn::LoadU(d, from + i + 3 * lanes));
  }
  *sink = hn::GetLane(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

const char* target_name() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace wick::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <vector>

#include "bench/machine.h"
#include "bench/measure.h"
#include "wick/base/error.h"
#include "wick/base/parallel.h"

namespace wick::bench {

HWY_EXPORT(multiply_add);
HWY_EXPORT(read_sum);
HWY_EXPORT(target_name);

namespace {

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) {
      return line.substr(line.find(':') + 2);
    }
  }
  return "unknown";
}

double peak_gflops(ThreadPool& pool, int tasks) {
  constexpr int64_t kRounds = 2'000'000;
  std::vector<float> sinks(static_cast<size_t>(tasks) * 16);
  double flops = 0;
  const Timing timing = measure([&] {
    pool.run(tasks, [&](int64_t task) {
      const double done = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, &sinks[task * 16]);
      if (task == 0) {
        flops = done * tasks;
      }
    });
  });
  return flops / timing.minimum() * 1e-9;
}

// The best of some passes.
double read_gbs(const MemoryReader& memory, int threads) {
  constexpr int kPasses = 21;
  double best = 0;
  for (int i = 0; i < kPasses; ++i) {
    best = std::max(best, memory.pass(threads));
  }
  return best;
}

}  // namespace

std::string instruction_set() {
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;  // begins with "Clang"
#else
  return std::string("GCC ") + __VERSION__;
#endif
}

void MemoryReader::Free::operator()(float* memory) const {
  std::free(memory);
}

namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kReadBytes = size_t{512} << 20;

}  // namespace

MemoryReader::MemoryReader(ThreadPool& pool)
    : pool_(pool), memory_(static_cast<float*>(std::aligned_alloc(kLargePage, kReadBytes))) {
  check(memory_ != nullptr, "bench: out of memory: {} bytes to read", kReadBytes);
#ifdef MADV_HUGEPAGE
  ::madvise(memory_.get(), kReadBytes, MADV_HUGEPAGE);
#endif
  std::fill_n(memory_.get(), kReadBytes / sizeof(float), 1.0F);
}

double MemoryReader::pass(int threads) const {
  std::vector<float> sinks(static_cast<size_t>(threads) * 16);
  const auto part = static_cast<int64_t>(kReadBytes / sizeof(float)) / threads;
  const std::function<void()> read = [&] {
    pool_.run(threads, [&](int64_t task) {
      HWY_DYNAMIC_DISPATCH(read_sum)(memory_.get() + task * part, part, &sinks[task * 16]);
    });
  };
  const Timing timing = measure(
      read, {.minimum_samples = 1, .minimum_seconds = 0, .fewest_samples = 1, .warm_up_calls = 0});
  return static_cast<double>(kReadBytes) / timing.minimum() * 1e-9;
}

namespace {

constexpr int64_t kBareValues = 32 << 10;  // of a task

}  // namespace

BareWork::BareWork(int threads)
    : tasks_(int64_t{2} * threads), values_(static_cast<size_t>(tasks_ * kBareValues), 1.0F) {}

void BareWork::run(ThreadPool& pool) const {
  constexpr int kPasses = 12;
  pool.run(tasks_, [this](int64_t task) {
    float sink = 0;
    for (int i = 0; i < kPasses; ++i) {
      HWY_DYNAMIC_DISPATCH(read_sum)(values_.data() + task * kBareValues, kBareValues, &sink);
    }
  });
}

MachineLimits measure_machine(ThreadPool& pool) {
  const MemoryReader memory(pool);
  MachineLimits limits;
  limits.processor = processor_name();
  limits.instruction_set = instruction_set();
  limits.threads = pool.threads();
  limits.fma_gflops_one = peak_gflops(pool, 1);
  limits.fma_gflops_all = peak_gflops(pool, pool.threads());
  limits.read_gbs_one = read_gbs(memory, 1);
  limits.read_gbs_all = read_gbs(memory, pool.threads());
  return limits;
}

}  // namespace wick::bench
#endif  // HWY_ONCE
