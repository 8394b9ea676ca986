// Which instruction sets the kernels are compiled for: AVX-512, AVX2, NEON, and plain C++ where the
// machine has none of them.
//
// Comes before every Highway header. A kernel file is compiled once for each set, so its code
// between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE takes raw pointers and instantiates nothing
// of the standard library: the linker keeps one copy of such an instance, maybe the AVX-512 one.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
