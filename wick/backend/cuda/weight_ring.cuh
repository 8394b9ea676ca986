// A ring of weights in shared memory that a warp fills and reads for itself.
//
// Copies go from memory into shared memory past the registers, so as many bytes are on their way as
// there is room, and they may be asked for long before they are wanted. From compute capability 9.0
// on one lane asks for a row at a time and a barrier counts the bytes (cp.async.bulk); before, each
// lane asks for what it will read itself (cp.async).
#pragma once

#include "wick/backend/cuda/linears_kernel.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kChunkBytes = 2048;  // of a channel, that a place of the ring holds
constexpr int kMostStages = 8;     // places of a ring

template <class W>
constexpr int kStepBytes = 256 * static_cast<int>(sizeof(W));  // eight weights a lane
template <class W>
constexpr int kChunkSteps = kChunkBytes / kStepBytes<W>;
template <class W>
constexpr int kChunkColumns = 256 * kChunkSteps<W>;

__device__ __forceinline__ void copy4_async(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// As wait_for_copies, for a number below kMostStages + 1 that is known only now.
__device__ __forceinline__ void wait_for_all_copies_but(int pending) {
  switch (pending) {
    case 0:
      return wait_for_copies<0>();
    case 1:
      return wait_for_copies<1>();
    case 2:
      return wait_for_copies<2>();
    case 3:
      return wait_for_copies<3>();
    case 4:
      return wait_for_copies<4>();
    case 5:
      return wait_for_copies<5>();
    case 6:
      return wait_for_copies<6>();
    case 7:
      return wait_for_copies<7>();
    default:
      return wait_for_copies<8>();
  }
}

#if __CUDA_ARCH__ >= 900
constexpr bool kBulkCopies = true;
#else
constexpr bool kBulkCopies = false;
#endif

__device__ __forceinline__ void start_barrier(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
#endif
}

// For more than one arrival a phase.
__device__ __forceinline__ void start_barrier_of(uint32_t barrier, uint32_t arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// After start_barrier, before the first copy.
__device__ __forceinline__ void show_barriers_to_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// What this thread did to shared memory by loads and stores, and those did that it has waited for,
// comes ahead of copies into it that are asked for later. One such fence on the way from a load to
// a copy is what the memory model wants (PTX ISA, "Causality order"); racecheck looks for it in the
// thread that loads alone.
__device__ __forceinline__ void follow_by_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}

__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}

__device__ __forceinline__ void wait_for_barrier(uint32_t barrier, uint32_t phase) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(phase)
      : "memory");
#endif
}

// Where eight weights of a lane lie at step s of a chunk: in the order of memory, or for copies by
// lanes in words of 16 bytes, lane beside lane.
template <class W>
__device__ __forceinline__ int place_in_chunk(int step, int word) {
  constexpr int kWords = sizeof(W) / 2;
  const int lane = threadIdx.x & 31;
  return step * kStepBytes<W> +
         (kBulkCopies ? (lane * kWords + word) * 16 : word * 512 + lane * 16);
}

// Asks for up to kChunkColumns of `row`, of which `count` are left, lane by lane.
template <class W>
__device__ __forceinline__ void fetch_chunk(const W* row, int count, uint32_t chunk) {
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int step = 0; step < kChunkSteps<W>; ++step) {
    if (256 * step + k0 < count) {
#pragma unroll
      for (int word = 0; word < static_cast<int>(sizeof(W)) / 2; ++word) {
        copy16_async(chunk + place_in_chunk<W>(step, word),
                     reinterpret_cast<const uint4*>(row + 256 * step + k0) + word, true);
      }
    }
  }
}

// sums[i] += chunk i . x, chunks `channel_bytes` apart; `count` columns are left.
template <class T, class W, int CHANNELS>
__device__ __forceinline__ void multiply_chunks(const T* x, int count, const unsigned char* chunks,
                                                int channel_bytes, float (&sums)[CHANNELS]) {
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int step = 0; step < kChunkSteps<W>; ++step) {
    const int at = 256 * step + k0;
    if (at >= count) {
      continue;
    }
    float values[8];
    load8(x + at, values);
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      EightWeights<W> stored;
#pragma unroll
      for (int word = 0; word < static_cast<int>(sizeof(W)) / 2; ++word) {
        stored.words[word] = *reinterpret_cast<const uint4*>(chunks + i * channel_bytes +
                                                             place_in_chunk<W>(step, word));
      }
      const W* weights = reinterpret_cast<const W*>(&stored);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sums[i] = fmaf(to_float(weights[j]), values[j], sums[i]);
      }
    }
  }
}

}  // namespace wick::cuda
