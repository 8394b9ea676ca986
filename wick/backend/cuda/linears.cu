// Linear layers of up to 8 rows of one input, with their adapters, in one launch: bound by reading
// the weights once.
//
// A warp takes an output channel (or a few) and its lanes run along K, 16 bytes a load, 8 loads in
// flight; x comes from the first cache. The channels of all layers lie side by side in one grid.
// With adapters, a cluster of 4 blocks belongs to one layer. Each block shrinks a quarter of K
// while its first weights are on their way, and the blocks add each other's sums up before they
// finish their first channels. Then lane r adds s[t,r] B[n,r] to its own part of the sum along K.
#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/lora.h"
#include "wick/backend/cuda/lora_adapters.cuh"

namespace wick::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMostTerms = 4;
constexpr int kMostAdapters = 120;  // kernel parameters are at most 4 KiB
constexpr int kMostRank = 64;
constexpr int kClusterBlocks = 4;  // fills processors of 16 and of 18 multiprocessors
constexpr int kBlocksOfProcessor = 2;
constexpr int kLoads = 8;  // of 16 bytes, that a thread has in flight

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
  TermView term[kMostTerms];
  AdapterView adapter[kMostAdapters];
};

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
struct Eight {
  uint4 words[sizeof(W) / 2];
};

// Weights are read once: they need not stay in the caches.
template <class W>
__device__ __forceinline__ Eight<W> load_weights(const W* from) {
  Eight<W> eight;
#pragma unroll
  for (size_t i = 0; i < sizeof(W) / 2; ++i) {
    eight.words[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
  }
  return eight;
}

// What a warp has in flight: kSteps runs of 256 weights along K of each of its channels.
template <class W, int CHANNELS>
struct Batch {
  static constexpr int kSteps = kLoads / CHANNELS / static_cast<int>(sizeof(W) / 2);
  static constexpr int kDepth = 256 * kSteps;
  Eight<W> of[CHANNELS][kSteps];
};

template <class W, int CHANNELS>
using Rows = const W* [CHANNELS];

template <class W, int CHANNELS>
__device__ __forceinline__ void fetch(const Rows<W, CHANNELS>& rows, int in,
                                      Batch<W, CHANNELS>& batch) {
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int step = 0; step < Batch<W, CHANNELS>::kSteps; ++step) {
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
__device__ __forceinline__ void multiply(const T* x, const Rows<W, CHANNELS>& rows,
                                         const Rows<W, CHANNELS>& next, int in, int valid,
                                         Batch<W, CHANNELS>& batch, float (&sums)[CHANNELS][ROWS]) {
  constexpr int kDepth = Batch<W, CHANNELS>::kDepth;
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
  for (int base = 0; base < in; base += kDepth) {
#pragma unroll
    for (int step = 0; step < Batch<W, CHANNELS>::kSteps; ++step) {
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
          load8(x + static_cast<int64_t>(min(t, valid - 1)) * in + at, values);
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
  const ShrinkSlice slice{
      begin, min(args.in, begin + count), args.in, int(threadIdx.x) / 32, kWarps, args.vector};
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
  for (int i = threadIdx.x; i < args.rows * args.width; i += kThreads) {
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
struct Finish {
  float b[CHANNELS];
  float bias;
};

template <int CHANNELS, int ROWS>
__device__ __forceinline__ void fetch_finish(const LinearsArgs& args, const TermView& term, int n0,
                                             Finish<CHANNELS>& finish) {
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
                                             const float* low, const Finish<CHANNELS>& finish,
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
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
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
  const int stride = term.blocks * kWarps * CHANNELS;
  int n = ((block - term.first_block) * kWarps + static_cast<int>(threadIdx.x) / 32) * CHANNELS;
  const T* x = static_cast<const T*>(args.x);
  const auto point = [&](int n0, Rows<W, CHANNELS>& rows) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const int64_t channel = min(n0 + i, channels - 1);
      rows[i] = n0 < channels ? static_cast<const W*>(term.weight) + channel * args.in : nullptr;
    }
  };
  Rows<W, CHANNELS> rows;
  Rows<W, CHANNELS> next;
  point(n, rows);
  Batch<W, CHANNELS> batch;
  if (args.vector && n < channels) {
    fetch(rows, args.in, batch);
  }
  if (adapted) {
    shrink_part<T, ROWS>(args, term, partial);
    cluster_arrive();
  }
  for (bool first = true;; first = false) {
    float sums[CHANNELS][ROWS] = {};
    Finish<CHANNELS> finish;
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
      cluster_arrive();
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

// How the channels are shared out.
struct Plan {
  int channels_of_warp;
  unsigned grid;
  unsigned cluster;
};

// Gives each layer blocks in proportion to its channels, no more than have work, so that all warps
// make the same number of rounds.
Plan share_out(const Context& context, bool adapted, int weight_bytes, LinearsArgs& args) {
  int64_t channels = 0;
  for (int i = 0; i < args.terms; ++i) {
    channels += args.term[i].channels;
  }
  constexpr int kManyRounds = 8;
  const int64_t most = kBlocksOfProcessor * context.multiprocessors;
  Plan plan{};
  const int several = args.rows == 1 ? 4 : 2;  // share each load of x
  const bool many = weight_bytes == 2 && channels >= several * kManyRounds * most * kWarps;
  plan.channels_of_warp = many ? several : 1;
  plan.cluster = adapted && context.compute_capability >= 90 ? kClusterBlocks : 1;
  const int64_t of_block = static_cast<int64_t>(plan.channels_of_warp) * kWarps;
  const int64_t rounds = ceil_div(channels, of_block * most);
  int64_t blocks = 0;
  for (int i = 0; i < args.terms; ++i) {
    TermView& term = args.term[i];
    term.first_block = static_cast<int>(blocks);
    term.blocks = static_cast<int>(
        ceil_div(ceil_div(term.channels, of_block * rounds), plan.cluster) * plan.cluster);
    blocks += term.blocks;
  }
  plan.grid = static_cast<unsigned>(blocks);
  return plan;
}

template <class T, class W, bool MANY_CHANNELS>
void launch(const Context& context, const Plan& plan, const LinearsArgs& args) {
  const auto kernel = args.rows == 1 ? linears < T, W, MANY_CHANNELS ? 4 : 1,
             1 > : args.rows <= 4 ? linears < T, W, MANY_CHANNELS ? 2 : 1, 4 > : linears < T, W,
             MANY_CHANNELS ? 2 : 1, 8 > ;
  const size_t shared = sizeof(float) * 2 * args.rows * args.width;
  launch_clusters(kernel, plan.grid, kThreads, plan.cluster, shared, context.stream, args);
  check_launch("linears");
}

template <class T, class W>
void launch_of_types(const Context& context, const Plan& plan, const LinearsArgs& args) {
  if constexpr (sizeof(W) == 2) {
    if (plan.channels_of_warp > 1) {
      launch<T, W, true>(context, plan, args);
      return;
    }
  }
  launch<T, W, false>(context, plan, args);
}

template <class T>
void launch_of_weights(const Context& context, DType weights, const Plan& plan,
                       const LinearsArgs& args) {
  if (weights == DType::bf16) {
    launch_of_types<T, __nv_bfloat16>(context, plan, args);
  } else if (weights == DType::f16) {
    launch_of_types<T, __half>(context, plan, args);
  } else {
    launch_of_types<T, float>(context, plan, args);
  }
}

bool takes(const Tensor& x, std::span<const LinearTerm> terms) {
  size_t adapters = 0;
  bool same = true;
  for (const LinearTerm& term : terms) {
    adapters += term.adapters.size();
    same = same && term.weight.dtype() == terms[0].weight.dtype() &&
           widest(term.adapters) <= kMostRank;
  }
  return same && !terms.empty() && terms.size() <= kMostTerms && adapters <= kMostAdapters &&
         x.rows() >= 1 && x.rows() <= kFewRows;
}

TermView view_of(const LinearTerm& term) {
  TermView view{};
  view.weight = term.weight.address();
  view.bias = term.bias ? term.bias.address() : nullptr;
  view.bias_type = term.bias ? term.bias.dtype() : DType::f32;
  view.y = term.y.address();
  view.y_type = term.y.dtype();
  view.channels = static_cast<int>(term.weight.rows());
  view.adapters = static_cast<int>(term.adapters.size());
  if (view.adapters > 0) {
    view.s = term.s.address();
    view.s_stride = static_cast<int>(term.s.columns());
    view.row_adapter = term.row_adapter ? term.row_adapter.data<int32_t>() : nullptr;
  }
  return view;
}

}  // namespace

bool linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  if (!takes(x, terms)) {
    return false;
  }
  LinearsArgs args{};
  args.x = x.address();
  args.in = static_cast<int>(x.columns());
  args.rows = static_cast<int>(x.rows());
  args.vector = args.in % 8 == 0 && aligned_to(args.x, 16);
  int adapters = 0;
  for (const LinearTerm& term : terms) {
    TermView& view = args.term[args.terms++];
    view = view_of(term);
    view.first_adapter = adapters;
    args.vector = args.vector && aligned_to(view.weight, 16);
    for (const LoraFactors& adapter : term.adapters) {
      args.adapter[adapters++] = view_of(adapter);
      args.vector = args.vector && aligned_to(adapter.a.address(), 16);
    }
    args.width = std::max(args.width, widest(term.adapters));
  }
  const Plan plan =
      share_out(context, adapters > 0, static_cast<int>(size_of(terms[0].weight.dtype())), args);
  if (plan.grid == 0) {
    return true;
  }
  if (x.dtype() == DType::bf16) {
    launch_of_weights<__nv_bfloat16>(context, terms[0].weight.dtype(), plan, args);
  } else {
    launch_of_weights<float>(context, terms[0].weight.dtype(), plan, args);
  }
  return true;
}

}  // namespace wick::cuda
