// Rows shared out to threads: who holds which columns of a row, and reductions over a row.
//
// A block is x threads a row by y rows: x is a power of two up to 32 (several rows a warp), or
// whole warps with y = 1. In the fast plans a thread keeps 1, 2 or 4 runs of eight columns in
// registers, so that a row is read once; the plain plan (vectors = 0) walks single columns and
// reads the row again for each pass: for rows that are too long, too odd or not aligned. The order
// of all sums depends on the shape alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

constexpr int kRowThreads = 512;  // at most, in a block of a row kernel

struct RowPlan {
  dim3 grid, block;
  int vectors = 0;
};

// True where runs of eight elements of every row of `columns` may be moved as 16-byte words.
inline bool in_runs(int64_t columns, std::initializer_list<const void*> addresses) {
  bool aligned = columns % 8 == 0;
  for (const void* address : addresses) {
    aligned = aligned && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  }
  return aligned;
}

inline RowPlan plan_rows(int64_t T, int64_t C, bool runs_of_eight) {
  const int64_t runs = C / 8;
  RowPlan plan;
  if (runs_of_eight && runs > 0 && runs <= 4 * kRowThreads) {
    plan.vectors = runs <= 256 ? 1 : runs <= 512 ? 2 : 4;
  }
  const int64_t wanted = plan.vectors > 0 ? ceil_div(runs, plan.vectors) : std::max<int64_t>(C, 1);
  constexpr unsigned kShared = 128;  // threads of a block that holds several rows
  if (wanted <= 32) {
    plan.block.x = std::bit_ceil(static_cast<unsigned>(wanted));
    plan.block.y = kShared / plan.block.x;
  } else {
    plan.block.x = static_cast<unsigned>(std::min<int64_t>(ceil_div(wanted, 32) * 32, kRowThreads));
  }
  plan.grid.x = static_cast<unsigned>(ceil_div(T, plan.block.y));
  return plan;
}

// Calls function with the plan's number of vectors as a compile-time constant.
template <class Function>
void with_vectors(const RowPlan& plan, const Function& function) {
  switch (plan.vectors) {
    case 1:
      return function(std::integral_constant<int, 1>());
    case 2:
      return function(std::integral_constant<int, 2>());
    case 4:
      return function(std::integral_constant<int, 4>());
    default:
      return function(std::integral_constant<int, 0>());
  }
}

// One element, or a run of eight.
template <class T, int kWidth>
__device__ __forceinline__ void load_run(const T* from, float (&values)[kWidth]) {
  static_assert(kWidth == 1 || kWidth == 8);
  if constexpr (kWidth == 8) {
    load8(from, values);
  } else {
    values[0] = to_float(*from);
  }
}

template <class T, int kWidth>
__device__ __forceinline__ void store_run(const float (&values)[kWidth], T* to) {
  static_assert(kWidth == 1 || kWidth == 8);
  if constexpr (kWidth == 8) {
    store8(values, to);
  } else {
    *to = from_float<T>(values[0]);
  }
}

// A thread's columns of a row of C. `each(C, body)` calls body(k, c) for each of its runs: they
// begin at column c and have kWidth columns; k is where kept values of the run stand.
template <int kVectors>
struct Columns {
  static constexpr bool kKept = kVectors > 0;  // values that were read in one pass serve the next
  static constexpr int kWidth = kKept ? 8 : 1;
  static constexpr int kRuns = kKept ? kVectors : 1;
  using Values = float[kRuns][kWidth];

  template <class Body>
  static __device__ __forceinline__ void each(int C, const Body& body) {
    if constexpr (kKept) {
#pragma unroll
      for (int k = 0; k < kRuns; ++k) {
        const int c = (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kWidth;
        if (c < C) {
          body(k, c);
        }
      }
    } else {
      for (int c = threadIdx.x; c < C; c += blockDim.x) {
        body(0, c);
      }
    }
  }
};

// The row of this thread; it may be past the last one, and then has no columns.
__device__ __forceinline__ int64_t row_of_thread() {
  return int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
}

struct Plus {
  static constexpr float kNeutral = 0.0F;
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Reduces over the threads of a row. Every thread of the block calls it, and every thread of the
// row gets the result. `parts` is shared memory that nothing else uses in the kernel.
template <class Operation>
__device__ __forceinline__ float reduce_row(float value, float* parts, Operation operation) {
  for (unsigned offset = min(blockDim.x, 32U) / 2; offset > 0; offset /= 2) {
    value = operation(value, __shfl_xor_sync(~0U, value, offset));
  }
  if (blockDim.x <= 32) {
    return value;
  }
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
    value = operation(value, parts[warp]);
  }
  return value;
}

constexpr int kRowWarps = kRowThreads / 32;

}  // namespace wick::cuda
