// Linear layers of up to 8 rows of one input, with their adapters, in one launch: bound by reading
// the weights once.
//
// A warp takes an output channel (or a few) and its lanes run along K, 16 bytes a load, 8 loads in
// flight; x comes from the first cache. The channels of all layers lie side by side in one grid.
// With adapters, a cluster of 4 blocks belongs to one layer. Each block shrinks a quarter of K
// while its first weights are on their way, and the blocks add each other's sums up before they
// finish their first channels. Then lane r adds s[t,r] B[n,r] to its own part of the sum along K.
#pragma once

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"

namespace wick::cuda {

constexpr int kLinearsThreads = 256;
constexpr int kLinearsWarps = kLinearsThreads / 32;
constexpr int kLinearsTerms = 4;
constexpr int kLinearsAdapters = 120;  // kernel parameters are at most 4 KiB
constexpr int kLinearsBlocks = 2;
constexpr int kLinearsLoads = 8;  // of 16 bytes, that a thread has in flight

struct TermView {
  const void* weight;
  const void* bias;
  void* y;
  void* s;
  const int32_t* row_adapter;
  int channels;
  int first_block, blocks;
  int first_adapter, adapters;
  int s_stride;
  DType bias_type, y_type;
};

struct LinearsArgs {
  const void* x;
  int in;
  int rows;
  int terms;
  int width;    // of a row of s in shared memory
  bool vector;  // x, weights and A in aligned runs of eight
  TermView term[kLinearsTerms];
  AdapterView adapter[kLinearsAdapters];
};

// All but how blocks share the layers; `terms` are at most kLinearsTerms. x may be a row that is to
// come: its memory is then not looked at.
LinearsArgs linears_args(const Tensor& x, std::span<const LinearTerm> terms, bool comes = false);

__device__ __forceinline__ float load_as(const void* from, int64_t i, DType type) {
  if (type == DType::bf16) {
    return to_float(static_cast<const __nv_bfloat16*>(from)[i]);
  }
  if (type == DType::f16) {
    return to_float(static_cast<const __half*>(from)[i]);
  }
  return static_cast<const float*>(from)[i];
}

__device__ __forceinline__ void store_as(float value, int64_t i, DType type, void* to) {
  if (type == DType::bf16) {
    static_cast<__nv_bfloat16*>(to)[i] = from_float<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(to)[i] = value;
  }
}

// Eight weights as they are stored.
template <class W>
struct EightWeights {
  uint4 words[sizeof(W) / 2];
};

// Weights are read once: they need not stay in the caches.
template <class W>
__device__ __forceinline__ EightWeights<W> load_weights(const W* from) {
  EightWeights<W> eight;
#pragma unroll
  for (size_t i = 0; i < sizeof(W) / 2; ++i) {
    eight.words[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
  }
  return eight;
}

// What a warp has in flight: kSteps runs of 256 weights along K of each of its channels.
template <class W, int CHANNELS>
struct WeightBatch {
  static constexpr int kSteps = kLinearsLoads / CHANNELS / static_cast<int>(sizeof(W) / 2);
  static constexpr int kDepth = 256 * kSteps;
  EightWeights<W> of[CHANNELS][kSteps];
};

template <class W, int CHANNELS>
using WeightRows = const W* [CHANNELS];

template <class W, int CHANNELS>
__device__ __forceinline__ void fetch(const WeightRows<W, CHANNELS>& rows, int in,
                                      WeightBatch<W, CHANNELS>& batch) {
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int step = 0; step < WeightBatch<W, CHANNELS>::kSteps; ++step) {
    if (k0 + 256 * step < in) {
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        batch.of[i][step] = load_weights(rows[i] + k0 + 256 * step);
      }
    }
  }
}

// sums[i][t] += rows[i] . x[t], where the batch has the begin of the rows. What is used makes room
// for what comes next, at last for the begin of the next rows (null: there are none).
template <class T, class W, int CHANNELS, int ROWS>
__device__ __forceinline__ void multiply(const T* x, const WeightRows<W, CHANNELS>& rows,
                                         const WeightRows<W, CHANNELS>& next, int in, int valid,
                                         WeightBatch<W, CHANNELS>& batch,
                                         float (&sums)[CHANNELS][ROWS]) {
  constexpr int kDepth = WeightBatch<W, CHANNELS>::kDepth;
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
  for (int base = 0; base < in; base += kDepth) {
#pragma unroll
    for (int step = 0; step < WeightBatch<W, CHANNELS>::kSteps; ++step) {
      const int at = base + 256 * step + k0;
      if (at < in) {
        float weights[CHANNELS][8];
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
          const W* stored = reinterpret_cast<const W*>(&batch.of[i][step]);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            weights[i][j] = to_float(stored[j]);
          }
          if (at + kDepth < in) {
            batch.of[i][step] = load_weights(rows[i] + at + kDepth);
          } else if (next[0] != nullptr) {
            batch.of[i][step] = load_weights(next[i] + 256 * step + k0);
          }
        }
#pragma unroll
        for (int t = 0; t < ROWS; ++t) {
          float values[8];
          load8(x + (min(t, valid - 1) * in + at), values);
#pragma unroll
          for (int i = 0; i < CHANNELS; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              sums[i][t] = fmaf(weights[i][j], values[j], sums[i][t]);
            }
          }
        }
      }
    }
  }
}

// Any K and alignment.
template <class T, class W, int CHANNELS, int ROWS>
__device__ __forceinline__ void multiply_singly(const T* x, const W* const (&rows)[CHANNELS],
                                                int in, int valid, float (&sums)[CHANNELS][ROWS]) {
  for (int k = threadIdx.x & 31; k < in; k += 32) {
#pragma unroll
    for (int t = 0; t < ROWS; ++t) {
      const float value = to_float(x[static_cast<int64_t>(min(t, valid - 1)) * in + k]);
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        sums[i][t] = fmaf(to_float(rows[i][k]), value, sums[i][t]);
      }
    }
  }
}

// The adapter of row t, or null.
__device__ __forceinline__ const AdapterView* adapter_of(const LinearsArgs& args,
                                                         const TermView& term, int t) {
  const int chosen = term.row_adapter == nullptr ? 0 : term.row_adapter[t];
  return chosen < 0 || chosen >= term.adapters ? nullptr
                                               : &args.adapter[term.first_adapter + chosen];
}

// This block's part of s, for its slice of K.
template <class T, int ROWS>
__device__ __forceinline__ void shrink_part(const LinearsArgs& args, const TermView& term,
                                            float* partial) {
  const int blocks = cluster_blocks();
  const int count = static_cast<int>(ceil_div(ceil_div(args.in, blocks), 8) * 8);
  const int begin = min(args.in, cluster_rank() * count);
  const ShrinkSlice slice{begin,         min(args.in, begin + count),
                          args.in,       int(threadIdx.x) / 32,
                          kLinearsWarps, args.vector};
  const T* x = static_cast<const T*>(args.x);
  if (term.row_adapter == nullptr) {
    shrink_slice<ROWS, 2>(x, args.rows, *adapter_of(args, term, 0), slice, partial, args.width);
    return;
  }
  for (int t = 0; t < args.rows; ++t) {
    const AdapterView* adapter = adapter_of(args, term, t);
    if (adapter != nullptr) {
      shrink_slice<1, 2>(x + static_cast<int64_t>(t) * args.in, 1, *adapter, slice,
                         partial + t * args.width, args.width);
    }
  }
}

// low[t,r] = scaling s[t,r], 0 where there is no adapter or rank; writes s too.
template <class T>
__device__ __forceinline__ void gather_parts(const LinearsArgs& args, const TermView& term,
                                             const float* partial, float* low) {
  const int blocks = cluster_blocks();
  for (int i = threadIdx.x; i < args.rows * args.width; i += kLinearsThreads) {
    const int t = i / args.width;
    const int r = i - t * args.width;
    const AdapterView* adapter = adapter_of(args, term, t);
    float sum = 0.0F;
    if (adapter != nullptr && r < adapter->rank) {
      for (int peer = 0; peer < blocks; ++peer) {
        sum += load_of_peer(partial + i, peer);
      }
      if (static_cast<int>(blockIdx.x) == term.first_block) {
        static_cast<T*>(term.s)[static_cast<int64_t>(t) * term.s_stride + r] = from_float<T>(sum);
      }
      sum *= adapter->scaling;
    }
    low[i] = sum;
  }
}

// What finishes a channel, asked for before the sum along K: each lane's rank of B where all rows
// have one adapter, and the bias of the output that a lane will store.
template <int CHANNELS>
struct ChannelEnd {
  float b[CHANNELS];
  float bias;
};

template <int CHANNELS, int ROWS>
__device__ __forceinline__ void fetch_finish(const LinearsArgs& args, const TermView& term, int n0,
                                             ChannelEnd<CHANNELS>& finish) {
  const int lane = threadIdx.x & 31;
  const int n = n0 + lane / ROWS;
  finish.bias = 0.0F;
  if (term.bias != nullptr && lane < CHANNELS * ROWS && n < term.channels) {
    finish.bias = load_as(term.bias, n, term.bias_type);
  }
  if (term.adapters > 0 && term.row_adapter == nullptr) {
    const AdapterView& adapter = args.adapter[term.first_adapter];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const int64_t channel = min(n0 + i, term.channels - 1);
      finish.b[i] = lane < adapter.rank ? adapter.b[channel * adapter.rank + lane] : 0.0F;
    }
  }
}

// The lanes' parts of sum_r low[t,r] B[n,r].
template <int CHANNELS, int ROWS>
__device__ __forceinline__ void add_low_rank(const LinearsArgs& args, const TermView& term, int n0,
                                             const float* low, const ChannelEnd<CHANNELS>& finish,
                                             float (&sums)[CHANNELS][ROWS]) {
  const int lane = threadIdx.x & 31;
  const bool one = term.row_adapter == nullptr;
#pragma unroll
  for (int t = 0; t < ROWS; ++t) {
    const AdapterView* adapter = t < args.rows ? adapter_of(args, term, t) : nullptr;
    if (adapter == nullptr) {
      continue;
    }
    for (int r = lane; r < adapter->rank; r += 32) {
      const float value = low[t * args.width + r];
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        const int64_t n = min(n0 + i, term.channels - 1);
        const float b = one && r == lane ? finish.b[i] : adapter->b[n * adapter->rank + r];
        sums[i][t] = fmaf(value, b, sums[i][t]);
      }
    }
  }
}

// Adds up the lanes; lane i * ROWS + t then has y[t, n0 + i].
template <int CHANNELS, int ROWS>
__device__ __forceinline__ void store_channels(const LinearsArgs& args, const TermView& term,
                                               int n0, float bias,
                                               const float (&sums)[CHANNELS][ROWS]) {
  const int lane = threadIdx.x & 31;
  float own = 0.0F;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
#pragma unroll
    for (int t = 0; t < ROWS; ++t) {
      const float sum = warp_sum(sums[i][t]);
      own = lane == i * ROWS + t ? sum : own;
    }
  }
  const int n = n0 + lane / ROWS;
  const int t = lane % ROWS;
  if (lane < CHANNELS * ROWS && t < args.rows && n < term.channels) {
    store_as(own + bias, static_cast<int64_t>(t) * term.channels + n, term.y_type, term.y);
  }
}

template <class T, class W, int CHANNELS, int ROWS>
__global__ void __launch_bounds__(kLinearsThreads, kLinearsBlocks)
    linears(const __grid_constant__ LinearsArgs args) {
  extern __shared__ float4 shared[];
  float* partial = reinterpret_cast<float*>(shared);
  float* low = partial + args.rows * args.width;
  const int block = static_cast<int>(blockIdx.x);
  int index = 0;
  while (index + 1 < args.terms && block >= args.term[index + 1].first_block) {
    ++index;
  }
  const TermView& term = args.term[index];
  const int channels = term.channels;
  const bool adapted = term.adapters > 0;
  const int stride = term.blocks * kLinearsWarps * CHANNELS;
  int n =
      ((block - term.first_block) * kLinearsWarps + static_cast<int>(threadIdx.x) / 32) * CHANNELS;
  const T* x = static_cast<const T*>(args.x);
  const auto point = [&](int n0, WeightRows<W, CHANNELS>& rows) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const int64_t channel = min(n0 + i, channels - 1);
      rows[i] = n0 < channels ? static_cast<const W*>(term.weight) + channel * args.in : nullptr;
    }
  };
  WeightRows<W, CHANNELS> rows;
  WeightRows<W, CHANNELS> next;
  point(n, rows);
  WeightBatch<W, CHANNELS> batch;
  let_next_start();
  if (args.vector && n < channels) {
    fetch(rows, args.in, batch);
  }
  wait_for_previous();
  if (adapted) {
    shrink_part<T, ROWS>(args, term, partial);
    cluster_arrive();
  }
  for (bool first = true;; first = false) {
    float sums[CHANNELS][ROWS] = {};
    ChannelEnd<CHANNELS> finish;
    if (n < channels) {
      fetch_finish<CHANNELS, ROWS>(args, term, n, finish);
      point(n + stride, next);
      if (args.vector) {
        multiply(x, rows, next, args.in, args.rows, batch, sums);
      } else {
        multiply_singly(x, rows, args.in, args.rows, sums);
      }
    }
    if (adapted && first) {
      cluster_wait();
      gather_parts<T>(args, term, partial, low);
      cluster_arrive_relaxed();
      __syncthreads();
    }
    if (n >= channels) {
      break;
    }
    if (adapted) {
      add_low_rank(args, term, n, low, finish, sums);
    }
    store_channels(args, term, n, finish.bias, sums);
    n += stride;
    point(n, rows);
  }
  if (adapted) {
    cluster_wait();
  }
}

}  // namespace wick::cuda
