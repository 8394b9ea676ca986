// What the attention kernels are told beside their tensors, which keys a query row sees, and the
// roads that attention.cu and attention_backward.cu choose between.
#pragma once

#include <cuda_bf16.h>

#include <climits>
#include <cmath>
#include <cstdint>

#include "wick/backend/cuda/attention.h"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.69314718F;

// Shapes as of the seam: q [Tq,H,D]; k, v [Tk,G,D]; spans i32 [S,4].
struct AttentionCall {
  const int* spans;
  int S, Tq, Tk, H, G, D;
  bool causal;
  int window;  // 0: none
  float scale;
};

inline AttentionCall attention_call(const Tensor& q, const Tensor& k, const Tensor& spans,
                                    const AttentionArgs& args) {
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  constexpr int64_t kWidest = 1 << 30;  // more than any sequence, and no overflow when subtracted
  return {spans.data<int32_t>(),
          narrow(spans.rows()),
          narrow(q.dim(0)),
          narrow(k.dim(0)),
          narrow(q.dim(1)),
          narrow(k.dim(1)),
          narrow(q.dim(2)),
          args.causal,
          narrow(args.window < kWidest ? args.window : kWidest),
          args.scale};
}

inline void check_head_size(int D) {
  if (D > 256) {
    check_cuda(cudaErrorNotSupported, "attention with heads larger than 256");
  }
}

constexpr int divide_up(int64_t dividend, int64_t divisor) {
  return static_cast<int>(ceil_div(dividend, divisor));
}

// Whether a block may have so much shared memory beside a kernel's own few KB: 163 KB in all on
// compute capability 8.0, 99 on 8.6 and 8.9.
inline bool has_shared(const Context& context, int bytes) {
  constexpr int kOwnBytes = 5 * 1024;
  return static_cast<size_t>(bytes + kOwnBytes) <= context.shared_bytes;
}

// Lets a kernel take more than 48 KB of shared memory a block.
template <class Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  if (bytes > 40 * 1024) {  // some kernels have a few more of their own
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "attention: shared memory of a block");
  }
}

// Rows [begin, end) of k and v; {0, 0} where there are none.
struct VisibleKeys {
  int begin, end;
  __device__ __forceinline__ bool empty() const { return begin >= end; }
  __device__ __forceinline__ bool has(int key) const { return key >= begin && key < end; }
};

// What query row `row` sees. Runs without queries lie behind all others.
__device__ __forceinline__ VisibleKeys visible_keys(const AttentionCall& call, int row) {
  int low = 0;
  int high = call.S;
  while (low < high) {  // for the first run that ends behind the row
    const int middle = (low + high) / 2;
    const int q_begin = call.spans[4 * middle];
    const int q_count = call.spans[4 * middle + 1];
    if (q_count > 0 && q_begin + q_count <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == call.S) {
    return {0, 0};
  }
  const int* run = call.spans + 4 * low;
  const int q_begin = run[0];
  const int q_count = run[1];
  const int k_begin = run[2];
  const int k_count = run[3];
  const int position = k_count - q_count + row - q_begin;
  const int end = call.causal ? position + 1 : k_count;
  const int begin = call.window > 0 ? max(position - call.window + 1, 0) : 0;
  if (q_count == 0 || row < q_begin || begin >= end) {
    return {0, 0};
  }
  return {k_begin + begin, k_begin + end};
}

// Of the keys that some rows see: the whole range, and what all of them see.
struct KeyBounds {
  int begin, end;
  int inner_begin, inner_end;
};

// Of `count` rows (a multiple of 16, at most 32 a step); the same in every lane of the warp.
__device__ __forceinline__ KeyBounds key_bounds(const VisibleKeys* rows, int count) {
  KeyBounds bounds{INT_MAX, 0, 0, INT_MAX};
  for (int row = static_cast<int>(threadIdx.x % 32) % count; row < count; row += 32) {
    const VisibleKeys keys = rows[row];
    bounds.begin = min(bounds.begin, keys.empty() ? INT_MAX : keys.begin);
    bounds.end = max(bounds.end, keys.end);
    bounds.inner_begin = max(bounds.inner_begin, keys.begin);
    bounds.inner_end = min(bounds.inner_end, keys.end);
  }
  __syncwarp();
  return {__reduce_min_sync(~0U, bounds.begin), __reduce_max_sync(~0U, bounds.end),
          __reduce_max_sync(~0U, bounds.inner_begin), __reduce_min_sync(~0U, bounds.inner_end)};
}

// Query rows [begin, end) among which are all that see a key of a tile.
struct RowBounds {
  int begin, end;
};

// Of keys [first_key, first_key + count), by all threads of a block; synchronises it.
__device__ __forceinline__ void find_rows(const AttentionCall& call, int first_key, int count,
                                          RowBounds* shared) {
  if (threadIdx.x == 0) {
    *shared = {INT_MAX, 0};
  }
  __syncthreads();
  for (int s = static_cast<int>(threadIdx.x); s < call.S; s += static_cast<int>(blockDim.x)) {
    const int* run = call.spans + 4 * s;
    const int q_count = run[1];
    const int k_begin = run[2];
    const int k_count = run[3];
    const int first = max(first_key - k_begin, 0);  // keys of the run
    const int last = min(first_key + count - k_begin, k_count) - 1;
    const int before = k_count - q_count;  // query i stands at key `before` + i
    const int begin = call.causal ? max(first - before, 0) : 0;
    const int end = call.window > 0 ? min(last + call.window - before, q_count) : q_count;
    if (first <= last && begin < end) {
      atomicMin(&shared->begin, run[0] + begin);
      atomicMax(&shared->end, run[0] + end);
    }
  }
  __syncthreads();
}

// Whether the tensor-core kernels of this type can take it: in rows of whole, aligned 16-byte
// chunks.
inline bool in_chunks(const Tensor& tensor, DType type = DType::bf16) {
  const int64_t chunk = type == DType::bf16 ? 8 : 4;
  return tensor.dtype() == type && tensor.columns() % chunk == 0 &&
         reinterpret_cast<uintptr_t>(tensor.address()) % 16 == 0;
}

// The road for any type, head size (up to 256) and alignment: products by single f32 operations.
void attention_plain(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionCall& call, const Tensor& o, const Tensor& lse);

// The road for few queries and many keys, bf16 in chunks.
void attention_decode(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                      const AttentionCall& call, const Tensor& o, const Tensor& lse);

// T: bf16 or f32, in chunks.
template <class T>
struct ForwardTensors {
  const T *q, *k, *v;
  T* o;
  float* lse;  // null: not wanted
};

// The road of compute capability 9.0, for heads of 64 and 128. False, and nothing done, where it
// cannot be taken.
bool attention_groups(const Context& context, const AttentionCall& call,
                      const ForwardTensors<__nv_bfloat16>& tensors);

// The same for many rows.
bool attention_persistent(const Context& context, const AttentionCall& call,
                          const ForwardTensors<__nv_bfloat16>& tensors);

// What the backward kernels know of the forward pass, by row and head.
struct RowStatistics {
  float2* of_heads;   // [H,Tq]: log2 of the softmax's denominator; sum of o d_o over the head
  VisibleKeys* keys;  // [Tq]
};

void find_statistics(const Context& context, const AttentionResults& forward,
                     const AttentionCall& call, const RowStatistics& statistics);

void attention_backward_plain(const Context& context, const AttentionResults& forward,
                              const AttentionCall& call, const RowStatistics& statistics,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv);

}  // namespace wick::cuda
