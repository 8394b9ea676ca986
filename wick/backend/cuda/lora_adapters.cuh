// What the low-rank kernels share: adapters as kernel parameters, and the shrink of a few rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "wick/backend/cuda/elements.cuh"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

struct AdapterView {
  const float* a = nullptr;  // [R, in]
  const float* b = nullptr;  // [out, R]
  float scaling = 0.0F;
  int rank = 0;
};

inline AdapterView view_of(const LoraFactors& adapter) {
  return {adapter.a.data<float>(), adapter.b.data<float>(), adapter.scaling,
          static_cast<int>(adapter.a.rows())};
}

// Adapters [first, first + count) of a call. A launch takes time for each line of its parameters,
// so a kernel for one adapter has room for no more.
template <int MOST>
struct AdapterTable {
  AdapterView of[MOST];
  int first = 0;
  int count = 0;
};

template <int MOST>
AdapterTable<MOST> table_of(std::span<const LoraFactors> adapters, size_t first) {
  AdapterTable<MOST> table;
  table.first = static_cast<int>(first);
  table.count = static_cast<int>(std::min<size_t>(MOST, adapters.size() - first));
  for (int i = 0; i < table.count; ++i) {
    table.of[i] = view_of(adapters[first + i]);
  }
  return table;
}

inline int widest(std::span<const LoraFactors> adapters) {
  int64_t rank = 0;
  for (const LoraFactors& adapter : adapters) {
    rank = std::max(rank, adapter.a.rows());
  }
  return static_cast<int>(rank);
}

inline bool aligned_to(const void* address, size_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Four neighbours; aligned to four elements.
template <class T>
__device__ __forceinline__ float4 load4(const T* from) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float4*>(from);
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    const T* narrow = reinterpret_cast<const T*>(&words);
    return {to_float(narrow[0]), to_float(narrow[1]), to_float(narrow[2]), to_float(narrow[3])};
  }
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  return fmaf(a.w, b.w, sum);
}

// The sum over the lanes, in all of them.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}

// Channels [begin, end) of a shrink, done by `warps` warps.
struct ShrinkSlice {
  int begin, end;
  int channels;  // of x and A
  int warp, warps;
  bool vector;  // rows and `begin` are aligned to four elements
};

// All lanes call store(r, sums) with the sum over the slice of x[row] A[r] for each row, r < rank.
// Each warp takes its own r, RANKS of them at a time, so x comes from the first cache but once.
// Rows from `valid` on repeat the last one.
template <int ROWS, int RANKS, class T, class Store>
__device__ __forceinline__ void shrink_slice(const T* x, int valid, const AdapterView& adapter,
                                             const ShrinkSlice& slice, const Store& store) {
  const int lane = threadIdx.x & 31;
  const int64_t K = slice.channels;
  for (int r0 = slice.warp; r0 < adapter.rank; r0 += slice.warps * RANKS) {
    const float* a[RANKS];
#pragma unroll
    for (int i = 0; i < RANKS; ++i) {
      a[i] = adapter.a + min(r0 + i * slice.warps, adapter.rank - 1) * K;
    }
    float sums[RANKS][ROWS] = {};
    if (slice.vector) {
#pragma unroll 2
      for (int k = slice.begin + 4 * lane; k < slice.end; k += 128) {
        float4 factors[RANKS];
#pragma unroll
        for (int i = 0; i < RANKS; ++i) {
          factors[i] = *reinterpret_cast<const float4*>(a[i] + k);
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          const float4 values = load4(x + min(row, valid - 1) * K + k);
#pragma unroll
          for (int i = 0; i < RANKS; ++i) {
            sums[i][row] = dot4(values, factors[i], sums[i][row]);
          }
        }
      }
    } else {
      for (int k = slice.begin + lane; k < slice.end; k += 32) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          const float value = to_float(x[min(row, valid - 1) * K + k]);
#pragma unroll
          for (int i = 0; i < RANKS; ++i) {
            sums[i][row] = fmaf(value, a[i][k], sums[i][row]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < RANKS; ++i) {
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        sums[i][row] = warp_sum(sums[i][row]);
      }
      if (r0 + i * slice.warps < adapter.rank) {
        store(r0 + i * slice.warps, sums[i]);
      }
    }
  }
}

// The same, to partial[row * width + r].
template <int ROWS, int RANKS, class T>
__device__ __forceinline__ void shrink_slice(const T* x, int valid, const AdapterView& adapter,
                                             const ShrinkSlice& slice, float* partial, int width) {
  const bool first = threadIdx.x % 32 == 0;
  shrink_slice<ROWS, RANKS>(x, valid, adapter, slice, [=](int r, const float(&sums)[ROWS]) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      if (first) {
        partial[row * width + r] = sums[row];
      }
    }
  });
}

}  // namespace wick::cuda
