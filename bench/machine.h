// What this machine can do at most: the ceilings that every figure is set against.
#pragma once

#include <string>

namespace wick {
class ThreadPool;
}

namespace wick::bench {

struct MachineLimits {
  std::string processor;        // as the system names it
  std::string instruction_set;  // the widest that Highway dispatches to here
  int threads = 1;              // of the pool that measured
  double fma_gflops_one = 0;    // f32 multiply-adds in registers, 2 flop each
  double fma_gflops_all = 0;
  double read_gbs_one = 0;  // reading memory far larger than the caches
  double read_gbs_all = 0;
};

MachineLimits measure_machine(ThreadPool& pool);
// "AVX2": what the kernels run with in this process.
std::string instruction_set();
// "GCC 12.2.0": counts of instructions hold for one compiler only.
std::string compiler();

}  // namespace wick::bench
