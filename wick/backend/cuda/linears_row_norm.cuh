// Linear layers of one row: the row as the warps of a block read it, normed on the way.
#pragma once

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/linears_row_share.cuh"

namespace wick::cuda {

// Starts the copy of the norm's weights, each thread of those that it will use: a group of copies.
template <class T>
__device__ __forceinline__ void fetch_norm_weight(const RowLinearsArgs& args, float* weight) {
  const int stride = 8 * static_cast<int>(blockDim.x);
  for (int c = 8 * static_cast<int>(threadIdx.x); c < args.linears.in; c += stride) {
    copy16_async(shared_address(weight + c), args.norm.weight + c, true);
    copy16_async(shared_address(weight + c + 4), args.norm.weight + c + 4, true);
  }
  commit_copies();
}

// x in shared memory, by all threads of the block; the first block writes the sum. Of a thread's
// copies all but `pending` groups are the norm's weights.
template <class T>
__device__ __forceinline__ void norm_row(const RowLinearsArgs& args, int pending,
                                         const float* weight, T* x) {
  __shared__ float squares_of_warp[kRowLinearsThreads / 32];
  const int in = args.linears.in;
  const int first = 8 * static_cast<int>(threadIdx.x);
  const int stride = 8 * static_cast<int>(blockDim.x);
  float squares = 0.0F;
  for (int c = first; c < in; c += stride) {
    float values[8];
    load8(static_cast<const T*>(args.norm.a) + c, values);
    if (args.norm.b != nullptr) {
      float other[8];
      load8(static_cast<const T*>(args.norm.b) + c, other);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        values[i] = to_float(from_float<T>(values[i] + other[i]));
      }
      if (blockIdx.x == 0) {
        store8(values, static_cast<T*>(args.norm.sum) + c);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      squares = fmaf(values[i], values[i], squares);
    }
    store8(values, x + c);
  }
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) {
    squares_of_warp[threadIdx.x / 32] = squares;
  }
  wait_for_all_copies_but(pending);
  __syncthreads();
  squares = 0.0F;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
    squares += squares_of_warp[warp];
  }
  const float scale = 1.0F / sqrtf(squares / static_cast<float>(in) + args.norm.eps);
  for (int c = first; c < in; c += stride) {
    float values[8];
    float weights[8];
    load8(x + c, values);
    load8(weight + c, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] = values[i] * scale * weights[i];
    }
    store8(values, x + c);
  }
  __syncthreads();
}

// The row, once it is there: in shared memory where that was asked for. All threads of the block.
template <class T, bool NORM>
__device__ __forceinline__ const T* await_row(const RowLinearsArgs& args, int pending,
                                              unsigned char* shared) {
  wait_for_previous();
  T* x = reinterpret_cast<T*>(shared + args.x_at);
  if constexpr (NORM) {
    norm_row(args, pending, reinterpret_cast<const float*>(shared + args.norm_weight_at), x);
    return x;
  }
  const T* from = static_cast<const T*>(args.linears.x);
  if (!args.copies_x) {
    return from;
  }
  for (int c = 8 * static_cast<int>(threadIdx.x); c < args.linears.in;
       c += 8 * static_cast<int>(blockDim.x)) {
#pragma unroll
    for (size_t word = 0; word < sizeof(T) / 2; ++word) {
      reinterpret_cast<uint4*>(x + c)[word] = reinterpret_cast<const uint4*>(from + c)[word];
    }
  }
  __syncthreads();
  return x;
}

}  // namespace wick::cuda
