// Products of small bf16 matrices by a warp. Lane = 4 g + q holds
//   of A, 16 x 16 (four registers): row g, columns 2q and 2q+1; row g+8, the same; and both again
//   for columns 2q+8 and 2q+9; of B, 16 x 8 (two): rows 2q and 2q+1 of column g; rows 2q+8 and
//   2q+9; of the sums, 16 x 8 (four floats): row g, columns 2q and 2q+1; row g+8, the same.
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16" and "movmatrix".
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace wick::cuda {

__device__ __forceinline__ void multiply_16x8x16(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                 uint32_t b0, uint32_t b1, float (&sums)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// With the first eight columns of A and rows of B alone.
__device__ __forceinline__ void multiply_16x8x8(uint32_t a0, uint32_t a1, uint32_t b0,
                                                float (&sums)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

// Of an 8 x 8 matrix of which each lane holds row g, columns 2q and 2q+1: its transpose, held
// alike.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float low_bf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000U);
}

}  // namespace wick::cuda
