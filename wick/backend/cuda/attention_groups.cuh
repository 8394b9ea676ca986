// Products of bf16 tiles by groups of four warps, for attention on compute capability 9.0 (wgmma).
//
// A tile of 64-column panels lies in shared memory panel by panel, each row 128 bytes; within eight
// rows, which begin at multiples of 1024 bytes, chunk c of 16 bytes of row r lies at c ^ r (PTX
// ISA, "Shared Memory Matrix Layout", 128-byte swizzling). The tensor cores read both operands from
// there, once for the 64 rows of a group, where mma.sync reads them once for each warp: at 16 rows
// a warp, those reads bind.
//
// What a lane holds of an accumulator acc[1][j][c] is as in attention_tiles.cuh; warp w of a group
// holds rows 16 w to 16 w + 15.
#pragma once

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_tiles.cuh"

// The instructions are those of one chip alone, and code for others cannot hold them.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WICK_GROUP_THREADS(threads) (threads)
#else
#define WICK_GROUP_THREADS(threads) 32  // see runs_groups
#endif

namespace wick::cuda {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;
constexpr int kPanelRowBytes = 128;
constexpr int kGroupPanelBytes = kGroupRows * kPanelRowBytes;
constexpr int kPanelAlignment = 1024;

__device__ __forceinline__ unsigned char* align_panels(unsigned char* shared) {
  return shared + (kPanelAlignment - shared_address(shared) % kPanelAlignment) % kPanelAlignment;
}

// Whether the build holds kernels with these instructions for this device: the others are empty,
// and take fewer threads.
template <class Kernel>
bool runs_groups(const Context& context, Kernel* kernel) {
  if (context.compute_capability != 90) {
    return false;
  }
  static const bool compiled = [&] {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), "attention: a kernel's attributes");
    return attributes.maxThreadsPerBlock >= kGroupThreads;
  }();
  return compiled;
}

// Rows of kD = 64 or 128 columns, by kThreads threads; those from source.rows on become zero.
template <int kD, int kRows, int kThreads>
__device__ __forceinline__ void load_panels(const TileSource& source, uint32_t tile) {
  constexpr int kChunks = kD / 8;
  constexpr int kStep = kThreads / kChunks;  // rows
  static_assert(kD % 64 == 0 && kStep % 8 == 0);
  const int thread = static_cast<int>(thread_here());
  const int chunk = thread % kChunks;
  const int row = thread / kChunks;
  const int count = source.rows - row;
  const auto* first = reinterpret_cast<const unsigned char*>(source.first);
  uint32_t from = row * source.row_bytes + chunk * 16;
  tile += chunk / 8 * (kRows * kPanelRowBytes) + row * kPanelRowBytes + (chunk % 8 ^ row % 8) * 16;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    if (kRows % kStep == 0 || row + i < kRows) {
      copy16_async(tile + i * kPanelRowBytes, first + (i < count ? from : 0), i < count);
    }
    from += kStep * source.row_bytes;
  }
}

// This thread's finished copies become visible to the tensor cores; a barrier must follow.
__device__ __forceinline__ void publish_copies() {
  wait_for_copies<0>();
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// PTX ISA, "Matrix Descriptor Format": the address, 1024 bytes between groups of eight rows, and
// the swizzling. The other stride is of no use to operands of 64 rows or columns.
__device__ __forceinline__ uint64_t panel_descriptor(uint32_t address) {
  constexpr uint64_t kForm = 1ULL << 62 | 64ULL << 32 | 1ULL << 16;
  return kForm | (address & 0x3FFFFU) >> 4;
}

__device__ __forceinline__ void begin_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Closes a batch of the products that the group has started.
__device__ __forceinline__ void commit_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most `pending` of the group's newest batches run.
template <int pending>
__device__ __forceinline__ void wait_for_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}
// Keeps the compiler from using an accumulator ahead of the wait before this.
template <int kColumns>
__device__ __forceinline__ void settle(float (&acc)[1][kColumns][4]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      asm volatile("" : "+f"(acc[0][j][c])::"memory");
    }
  }
}

// c[64,64] = a[64,16] b[64,16]^T.
__device__ __forceinline__ void start_product(uint64_t a, uint64_t b, float (*c)[4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred none;\nsetp.ne.b32 none, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, none, 1, 1, 0, 0;\n}"
      : "=&f"(c[0][0]), "=&f"(c[0][1]), "=&f"(c[0][2]), "=&f"(c[0][3]), "=&f"(c[1][0]),
        "=&f"(c[1][1]), "=&f"(c[1][2]), "=&f"(c[1][3]), "=&f"(c[2][0]), "=&f"(c[2][1]),
        "=&f"(c[2][2]), "=&f"(c[2][3]), "=&f"(c[3][0]), "=&f"(c[3][1]), "=&f"(c[3][2]),
        "=&f"(c[3][3]), "=&f"(c[4][0]), "=&f"(c[4][1]), "=&f"(c[4][2]), "=&f"(c[4][3]),
        "=&f"(c[5][0]), "=&f"(c[5][1]), "=&f"(c[5][2]), "=&f"(c[5][3]), "=&f"(c[6][0]),
        "=&f"(c[6][1]), "=&f"(c[6][2]), "=&f"(c[6][3]), "=&f"(c[7][0]), "=&f"(c[7][1]),
        "=&f"(c[7][2]), "=&f"(c[7][3])
      : "l"(a), "l"(b));
#endif
}

// c[64,64] += a[64,16] b[64,16]^T.
__device__ __forceinline__ void add_product(uint64_t a, uint64_t b, float (*c)[4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, 1, 1, 1, 0, 0;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
        "+f"(c[7][2]), "+f"(c[7][3])
      : "l"(a), "l"(b));
#endif
}

// c[64,64] += a[64,16] b[16,64].
__device__ __forceinline__ void add_product_of_rows(const uint32_t (&a)[4], uint64_t b,
                                                    float (*c)[4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
        "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// acc[64,64] = a[64,kD] b[64,kD]^T. a_panel: bytes of a panel of a's tile, of which a may be a
// part.
template <int kD, int a_panel>
__device__ __forceinline__ void start_nt(uint32_t a, uint32_t b, float (&acc)[1][8][4]) {
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    const uint64_t left = panel_descriptor(a + step / 4 * a_panel + step % 4 * 32);
    const uint64_t right = panel_descriptor(b + step / 4 * kGroupPanelBytes + step % 4 * 32);
    if (step == 0) {
      start_product(left, right, acc[0]);
    } else {
      add_product(left, right, acc[0]);
    }
  }
}

// acc[64,kD] += p[64,64] b[64,kD].
template <int kD>
__device__ __forceinline__ void start_nn(const uint32_t (&p)[1][4][4], uint32_t b,
                                         float (&acc)[1][kD / 8][4]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int panel = 0; panel < kD / 64; ++panel) {
      const uint32_t from = b + panel * kGroupPanelBytes + step * 16 * kPanelRowBytes;
      add_product_of_rows(p[0][step], panel_descriptor(from), acc[0] + panel * 8);
    }
  }
}

}  // namespace wick::cuda
