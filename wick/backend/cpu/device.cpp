// The best of the instruction sets that the kernels are compiled for and this CPU has.
#include "wick/backend/cpu/device.h"

#include <fmt/core.h>

#include "wick/backend/cpu/simd_targets.h"
#include "wick/base/parallel.h"
// After the choice of targets:
#include <hwy/highway.h>

namespace wick::cpu {

std::string describe_device() {
  const int threads = ThreadPool().threads();
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = targets & -targets;  // Highway numbers them from the best on
  return fmt::format("{} {}, {}", threads, threads == 1 ? "thread" : "threads",
                     hwy::TargetName(best));
}

}  // namespace wick::cpu
