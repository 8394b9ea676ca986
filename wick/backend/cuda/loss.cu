// Cross-entropy: a block takes a row. One pass finds the largest logit and the sum, which is
// rescaled whenever the largest grows (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018); a second writes the gradient. The first words of the row stay in registers
// between the two, and the rest of a long row is read again, from the second cache if it is lucky.
#include "wick/backend/cuda/loss.h"

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/fast_exp.cuh"
#include "wick/backend/cuda/rows.cuh"

namespace wick::cuda {

namespace {

constexpr int kLossThreads = 512;  // at most
constexpr int kKeptWords = 8;      // of 16 bytes, by each thread

template <class T>
constexpr int kInWord = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void unpack(const uint4& word, float (&values)[kInWord<T>]) {
  const T* stored = reinterpret_cast<const T*>(&word);
#pragma unroll
  for (int i = 0; i < kInWord<T>; ++i) {
    values[i] = to_float(stored[i]);
  }
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kInWord<T>]) {
  uint4 word;
  T* stored = reinterpret_cast<T*>(&word);
#pragma unroll
  for (int i = 0; i < kInWord<T>; ++i) {
    stored[i] = from_float<T>(values[i]);
  }
  return word;
}

// Hides from the compiler that it has unpacked the word before: the floats would take the
// registers.
__device__ __forceinline__ void forget(uint4& word) {
  asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
}

// A row as aligned words, and the few elements before and after them, of which a thread has one at
// most. Blocks have at least 32 threads.
template <class T>
struct RowWords {
  uint4* words;
  int count;  // of words
  int first;  // the column at which they begin
  int edge;   // this thread's column outside the words, or -1

  __device__ RowWords(T* row, int V) {
    const auto misplaced = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16);
    first = min(V, (16 - misplaced) % 16 / static_cast<int>(sizeof(T)));
    words = reinterpret_cast<uint4*>(row + first);
    count = (V - first) / kInWord<T>;
    const int end = first + count * kInWord<T>;
    const auto thread = static_cast<int>(threadIdx.x);
    edge = thread < first ? thread : thread >= 16 && thread < 16 + V - end ? end + thread - 16 : -1;
  }
};

template <int kCount>
__device__ __forceinline__ void absorb(const float (&values)[kCount], SoftmaxSum& softmax) {
  float largest = values[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    largest = fmaxf(largest, values[i]);
  }
  if (largest > softmax.largest) {
    softmax.sum *= fast_exp(softmax.largest - largest);
    softmax.largest = largest;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    softmax.sum += fast_exp(values[i] - softmax.largest);
  }
}

struct Gradient {
  float largest;
  float factor;  // scale / sum
  float scale;
  int target;

  // Of the logits of columns [first, first + kCount).
  template <int kCount>
  __device__ __forceinline__ void apply(int first, float (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = factor * fast_exp(values[i] - largest);
    }
    if (static_cast<unsigned>(target - first) < kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] -= first + i == target ? scale : 0.0F;
      }
    }
  }
};

template <class T>
__device__ __forceinline__ void clear(const RowWords<T>& of, T* row) {
  for (int w = threadIdx.x; w < of.count; w += blockDim.x) {
    of.words[w] = {0, 0, 0, 0};
  }
  if (of.edge >= 0) {
    row[of.edge] = from_float<T>(0.0F);
  }
}

// gradient_scale null: the gradient is not wanted.
template <class T>
__global__ void __launch_bounds__(kLossThreads, 2)
    cross_entropy_kernel(const int32_t* __restrict__ targets,
                         const float* __restrict__ gradient_scale, int V, T* logits,
                         float* losses) {
  __shared__ SoftmaxSum parts[32];
  T* row = logits + int64_t{blockIdx.x} * V;
  const RowWords<T> own(row, V);
  const int target = targets[blockIdx.x];  // no kernel has made them
  wait_for_previous();
  let_next_start();
  const auto thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  if (target < 0) {
    if (thread == 0) {
      losses[blockIdx.x] = 0;
    }
    if (gradient_scale != nullptr) {
      clear(own, row);
    }
    return;
  }
  const float wanted = to_float(row[target]);
  uint4 kept[kKeptWords];
#pragma unroll
  for (int k = 0; k < kKeptWords; ++k) {
    if (const int w = thread + k * threads; w < own.count) {
      kept[k] = own.words[w];
    }
  }
  float edge[1] = {own.edge >= 0 ? to_float(row[own.edge]) : -INFINITY};
  SoftmaxSum softmax{kNoLogit, 0};
  float values[kInWord<T>];
#pragma unroll
  for (int k = 0; k < kKeptWords; ++k) {
    if (thread + k * threads < own.count) {
      unpack<T>(kept[k], values);
      absorb(values, softmax);
    }
  }
#pragma unroll 2
  for (int w = thread + kKeptWords * threads; w < own.count; w += threads) {
    unpack<T>(own.words[w], values);
    absorb(values, softmax);
  }
  absorb(edge, softmax);
  softmax = join_warps(join_lanes(softmax, 32), parts);  // its barrier: `wanted` is read by now
  if (thread == 0) {
    losses[blockIdx.x] = logf(softmax.sum) + softmax.largest - wanted;
  }
  if (gradient_scale == nullptr) {
    return;
  }
  const Gradient gradient{softmax.largest, *gradient_scale / softmax.sum, *gradient_scale, target};
#pragma unroll
  for (int k = 0; k < kKeptWords; ++k) {
    if (const int w = thread + k * threads; w < own.count) {
      forget(kept[k]);
      unpack<T>(kept[k], values);
      gradient.apply(own.first + w * kInWord<T>, values);
      own.words[w] = pack<T>(values);
    }
  }
#pragma unroll 2
  for (int w = thread + kKeptWords * threads; w < own.count; w += threads) {
    unpack<T>(own.words[w], values);
    gradient.apply(own.first + w * kInWord<T>, values);
    own.words[w] = pack<T>(values);
  }
  if (own.edge >= 0) {
    gradient.apply(own.edge, edge);
    row[own.edge] = from_float<T>(edge[0]);
  }
}

}  // namespace

void cross_entropy(const Context& context, const Tensor& targets, const CrossEntropyArgs& args,
                   const Tensor& logits, const Tensor& losses) {
  const int64_t rows = logits.rows();
  const int64_t V = logits.columns();
  if (rows == 0 || V == 0) {
    return;
  }
  with_activation(logits, [&]<class T>(T* values) {
    const int64_t wanted = ceil_div(ceil_div(V, kInWord<T>), 32) * 32;
    const auto threads = static_cast<unsigned>(std::min<int64_t>(wanted, kLossThreads));
    launch_early(context, true, cross_entropy_kernel<T>, static_cast<unsigned>(rows), threads, 0,
                 targets.data<int32_t>(),
                 args.gradient_scale ? args.gradient_scale.data<float>() : nullptr,
                 static_cast<int>(V), values, losses.data<float>());
    check_launch("cross_entropy");
  });
}

}  // namespace wick::cuda
