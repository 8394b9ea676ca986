// What this machine can do at most: the ceilings that every figure is set against.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace wick {
class Backend;
class ThreadPool;
}  // namespace wick

namespace wick::bench {

struct MachineLimits {
  std::string processor;        // as the system names it
  std::string instruction_set;  // the widest that Highway dispatches to here
  int threads = 1;              // of the pool that measured
  double fma_gflops_one = 0;    // f32 multiply-adds in registers, 2 flop each
  double fma_gflops_all = 0;
  double read_gbs_one = 0;  // reading memory far larger than the caches
  double read_gbs_all = 0;

  // Of a GPU alone; then fma_gflops_all is the rate of its f32 products, and read_gbs_all that of a
  // copy, bytes read and written.
  std::string detail;         // memory, driver
  double matmul_gflops = 0;   // bf16 products with f32 sums
  double launch_seconds = 0;  // launching a graph of one small kernel, and awaiting it
  double kernel_seconds = 0;  // a small kernel in a graph that needs the result of the one before

  double flop_limit() const { return matmul_gflops > 0 ? matmul_gflops : fma_gflops_all; }
};

MachineLimits measure_machine(ThreadPool& pool);

// Two tasks for each of so many threads, some 25 us each, that add up an array of their own in the
// second cache. They share nothing, so what more threads gain of them is what the machine gives.
class BareWork {
 public:
  explicit BareWork(int threads);

  void run(ThreadPool& pool) const;

 private:
  int64_t tasks_;
  std::vector<float> values_;
};

// Reads an array far larger than the caches, on large pages as the weights of models are.
class MemoryReader {
 public:
  explicit MemoryReader(ThreadPool& pool);

  // GB/s of one pass over the array by so many threads.
  double pass(int threads) const;

 private:
  struct Free {
    void operator()(float* memory) const;
  };

  ThreadPool& pool_;
  std::unique_ptr<float[], Free> memory_;
};

struct DeviceWork {
  int64_t bf16_product = 8192;  // rows, columns and inner size
  int64_t f32_product = 4096;
  int64_t copy_bytes = int64_t{1} << 30;
};
// Through the back end, with the kernels that training and generating run.
MachineLimits measure_device(Backend& backend, const DeviceWork& work = {});
// "AVX2": what the kernels run with in this process.
std::string instruction_set();
// "GCC 12.2.0": counts of instructions hold for one compiler only.
std::string compiler();

}  // namespace wick::bench
