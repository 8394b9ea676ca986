// Products of a group of four warps with many columns (wgmma), for compute capability 9.0.
//
// Operands are panels in shared memory as in attention_groups.cuh: rows of 128 bytes, swizzled.
// Lane 4g+q of warp w holds of c the rows 16w+g (c[4j], c[4j+1]) and 16w+g+8 (c[4j+2], c[4j+3]) of
// columns 8j+2q and the next (PTX ISA, "Asynchronous warpgroup level matrix instructions").
#pragma once

#include "wick/backend/cuda/attention_groups.cuh"

#define WICK_SUMS_8(c, i)                                                                       \
  "+f"((c)[i]), "+f"((c)[(i) + 1]), "+f"((c)[(i) + 2]), "+f"((c)[(i) + 3]), "+f"((c)[(i) + 4]), \
      "+f"((c)[(i) + 5]), "+f"((c)[(i) + 6]), "+f"((c)[(i) + 7])
#define WICK_SUMS_16(c, i) WICK_SUMS_8(c, i), WICK_SUMS_8(c, (i) + 8)
#define WICK_SUMS_32(c, i) WICK_SUMS_16(c, i), WICK_SUMS_16(c, (i) + 16)
#define WICK_SUMS_64(c, i) WICK_SUMS_32(c, i), WICK_SUMS_32(c, (i) + 32)
#define WICK_SUMS_128(c, i) WICK_SUMS_64(c, i), WICK_SUMS_64(c, (i) + 64)

namespace wick::cuda {

// Of a right operand whose panels are 64 columns of kPanelRows rows (of the sum): kPanelRows x 128
// bytes from panel to panel, 1024 between groups of eight rows; steps of 16 rows are 2048 bytes
// apart.
template <int kPanelRows = 64>
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t address) {
  constexpr uint64_t kPanel = kPanelRows * kPanelRowBytes / 16;
  constexpr uint64_t kForm = 1ULL << 62 | 64ULL << 32 | kPanel << 16;
  return kForm | (address & 0x3FFFFU) >> 4;
}

// c[64,256] = a[64,16] b (+ c where `add`). b is [256,16] transposed or, with kRows, [16,256] of
// rows_descriptor.
template <bool kRows = false>
__device__ __forceinline__ void multiply_panels(uint64_t a, uint64_t b, bool add, float (&c)[128]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, add, 1, 1, 0, %131;\n}"
      : WICK_SUMS_128(c, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kRows)));
#endif
}

// c[64,256] += a[64,16] b[256,16]^T, with a in registers (a lane has of a what it has of an
// accumulator, two values a register: rows g, g + 8 of columns 2q and the next, then of columns 8
// on).
__device__ __forceinline__ void add_registers(const uint32_t (&a)[4], uint64_t b, float (&c)[128]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
      : WICK_SUMS_128(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c[64,16] = a[64,16] b[16,16]^T (+ c where `add`).
__device__ __forceinline__ void multiply_panels(uint64_t a, uint64_t b, bool add, float (&c)[8]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, add, 1, 1, 0, 0;\n}"
      : WICK_SUMS_8(c, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

// c[64,32] = a[64,16] b[32,16]^T (+ c where `add`).
__device__ __forceinline__ void multiply_panels(uint64_t a, uint64_t b, bool add, float (&c)[16]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, add, 1, 1, 0, 0;\n}"
      : WICK_SUMS_16(c, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

// c[64,64] = a[64,16] b[64,16]^T (+ c where `add`).
__device__ __forceinline__ void multiply_panels(uint64_t a, uint64_t b, bool add, float (&c)[32]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, add, 1, 1, 0, 0;\n}"
      : WICK_SUMS_32(c, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

// c[64,128] = a[64,16] b[128,16]^T (+ c where `add`).
__device__ __forceinline__ void multiply_panels(uint64_t a, uint64_t b, bool add, float (&c)[64]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, add, 1, 1, 0, 0;\n}"
      : WICK_SUMS_64(c, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

// c[64,128] += a[64,16] b[16,128], with a in registers; b of two panels, see its descriptor.
__device__ __forceinline__ void add_registers_of_rows(const uint32_t (&a)[4], uint64_t b,
                                                      float (&c)[64]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : WICK_SUMS_64(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// Keeps the compiler from using an accumulator ahead of the wait before this.
template <int kValues>
__device__ __forceinline__ void settle(float (&c)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    asm volatile("" : "+f"(c[i])::"memory");
  }
}

}  // namespace wick::cuda

#undef WICK_SUMS_8
#undef WICK_SUMS_16
#undef WICK_SUMS_32
#undef WICK_SUMS_64
#undef WICK_SUMS_128
