// Copies of boxes of a tensor into shared memory (TMA), for compute capability 9.0, and what blocks
// of a cluster tell each other about them. Source: PTX ISA, "cp.async.bulk.tensor", "mbarrier".
#pragma once

#include <cuda.h>

#include "wick/backend/cuda/tensor_core.cuh"
#include "wick/backend/cuda/weight_ring.cuh"

namespace wick::cuda {

// At the barrier that block `rank` of the cluster has where this block has `barrier`.
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
#endif
}

// The box of `map` at column x and row y.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int x, int y,
                                         uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
#endif
}

// The same to all blocks of `blocks` (a bit each), to the same place and barrier in each.
__device__ __forceinline__ void copy_box_to(uint32_t blocks, uint32_t to, const CUtensorMap& map,
                                            int x, int y, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(static_cast<uint16_t>(blocks))
      : "memory");
#endif
}

// Four 8x8 matrices of what lanes hold as in tensor_core.cuh, matrix i to the row addresses of
// lanes 8i to 8i + 7.
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&from)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#endif
}

}  // namespace wick::cuda
