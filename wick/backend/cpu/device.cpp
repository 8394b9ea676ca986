// The best of the instruction sets that the kernels are compiled for and this CPU has, and what
// oneDNN makes of it.
#include "wick/backend/cpu/device.h"

#include <dnnl.h>
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

bool has_bf16_products() {
#if defined(__x86_64__)
  const bool vectors = (hwy::SupportedTargets() & HWY_AVX3) != 0;  // tests take them away
  constexpr unsigned kWanted = dnnl_cpu_isa_avx512_core_bf16;
  return vectors && (dnnl_get_effective_cpu_isa() & kWanted) == kWanted;
#else
  return false;  // oneDNN has kernels of its own for x86 alone
#endif
}

}  // namespace wick::cpu
