// Groups of four warps with work of their own: the registers that they take and leave, and where
// each is in a ring of stages. Source: PTX ISA, "setmaxnreg".
#pragma once

#include <cstdint>

namespace wick::cuda {

// What a multiprocessor has for three threads, one of each of three groups that fill it.
constexpr int kRegistersOfThree = 504;

// Of a group, for each of its threads: more than the kernel has, and fewer.
template <int kEach>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kEach));
#endif
}
template <int kEach>
__device__ __forceinline__ void leave_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kEach));
#endif
}

// A place in the ring, and how often it came round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;  // its lowest bit

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      round ^= 1;
    }
  }
};

}  // namespace wick::cuda
