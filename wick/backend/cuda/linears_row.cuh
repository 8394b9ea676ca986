// Linear layers of one row, with their adapters, in one launch: bound by reading the weights once.
//
// A warp takes an output channel, or where there are few and long ones a part of it, and its lanes
// run along K, 16 bytes a load, 8 loads in flight from before the row is there (see
// early_launch.cuh). A gated pair takes two channels a warp and writes act(g) u.
//
// The low-rank half has a warp of its own in each block. The first blocks' shrink A, up to 1024
// columns of a row each, and post their sums; each block's waits for those that it needs, while its
// other warps multiply, and the channels end with lane r's scaling s[r] B[n,r]. Blocks post before
// they wait, and those that post have the smallest numbers, so what is waited for always runs.
#pragma once

#include "wick/backend/cuda/activate.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/linears_kernel.cuh"

namespace wick::cuda {

constexpr int kRowLinearsThreads = kLinearsThreads + 32;
constexpr int kPieceLoads = 8;                    // of 16 bytes
constexpr int kPieceColumns = 128 * kPieceLoads;  // of a task

struct RowLinearsArgs {
  LinearsArgs linears;
  int split;                      // warps that share a channel; above 1: no second round
  int pieces;                     // that a row of A is cut into
  int tasks;                      // of all adapters; 0: no warp for them
  int first_task[kLinearsTerms];  // of term.s_rank x pieces
  int ranks[kLinearsTerms];       // widest of the term's adapters
  Mailbox mailbox;
  bool gelu;  // of a gated pair
  void* h;
};

// A task's sum beside the number of the launch, in one word: whoever finds the number has the sum.
__device__ __forceinline__ void post(uint64_t* slot, float sum, uint32_t launch) {
  const uint64_t word = uint64_t{launch} << 32 | __float_as_uint(sum);
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(slot), "l"(word) : "memory");
}

__device__ __forceinline__ float await(const uint64_t* slot, uint32_t launch) {
  uint64_t word;
  do {
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(slot) : "memory");
  } while (static_cast<uint32_t>(word >> 32) != launch);
  return __uint_as_float(static_cast<uint32_t>(word));
}

// A task of the shrink: up to kPieceColumns of a row of A.
struct ShrinkPiece {
  const float* a = nullptr;  // null: the row's adapter does not have this rank
  int begin = 0, count = 0;
};

__device__ __forceinline__ ShrinkPiece piece_of(const RowLinearsArgs& args, int task) {
  int index = 0;
  while (index + 1 < args.linears.terms && task >= args.first_task[index + 1]) {
    ++index;
  }
  const int local = task - args.first_task[index];
  const int r = local / args.pieces;
  const AdapterView* adapter = adapter_of(args.linears, args.linears.term[index], 0);
  ShrinkPiece piece;
  if (adapter != nullptr && r < adapter->rank) {
    piece.begin = local % args.pieces * kPieceColumns;
    piece.count = min(kPieceColumns, args.linears.in - piece.begin);
    piece.a = adapter->a + static_cast<int64_t>(r) * args.linears.in + piece.begin;
  }
  return piece;
}

__device__ __forceinline__ void read_piece(const ShrinkPiece& piece,
                                           float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      factors[i] = *reinterpret_cast<const float4*>(piece.a + k0 + 128 * i);
    }
  }
}

template <class T>
__device__ __forceinline__ float shrink_piece(const T* x, const ShrinkPiece& piece,
                                              const float4 (&factors)[kPieceLoads]) {
  const int k0 = 4 * static_cast<int>(threadIdx.x & 31);
  float4 values[kPieceLoads];
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      values[i] = load4(x + piece.begin + k0 + 128 * i);
    }
  }
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kPieceLoads; ++i) {
    if (k0 + 128 * i < piece.count) {
      sum = dot4(values[i], factors[i], sum);
    }
  }
  return warp_sum(sum);
}

// low[r] = scaling s[r] of one term, as its tasks are done; writes s too.
template <class T>
__device__ __forceinline__ void gather_low(const RowLinearsArgs& args, int index, uint32_t launch,
                                           bool writes, float* low) {
  const TermView& term = args.linears.term[index];
  const AdapterView* adapter = term.adapters > 0 ? adapter_of(args.linears, term, 0) : nullptr;
  for (int r = threadIdx.x & 31; r < args.ranks[index]; r += 32) {
    float sum = 0.0F;
    if (adapter != nullptr && r < adapter->rank) {
      const uint64_t* from = args.mailbox.slots + args.first_task[index] + r * args.pieces;
      for (int piece = 0; piece < args.pieces; ++piece) {
        sum += await(from + piece, launch);
      }
      if (writes) {
        static_cast<T*>(term.s)[r] = from_float<T>(sum);
      }
      sum *= adapter->scaling;
    }
    low[r] = sum;
  }
}

// What the last warp of a block does.
template <class T, int CHANNELS>
__device__ __forceinline__ void shrink_and_gather(const RowLinearsArgs& args, int index,
                                                  float* low) {
  const int lane = threadIdx.x & 31;
  const auto blocks = static_cast<int>(gridDim.x);
  const auto first = static_cast<int>(blockIdx.x);
  float4 factors[kPieceLoads];
  ShrinkPiece piece;
  if (first < args.tasks) {
    piece = piece_of(args, first);
    read_piece(piece, factors);
  }
  wait_for_previous();
  const uint32_t launch = args.mailbox.state->launch;
  for (int task = first; task < args.tasks; task += blocks) {
    if (task != first) {
      piece = piece_of(args, task);
      read_piece(piece, factors);
    }
    const float sum = shrink_piece(static_cast<const T*>(args.linears.x), piece, factors);
    if (lane == 0) {
      post(args.mailbox.slots + task, sum, launch);
    }
  }
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    gather_low<T>(args, index + i, launch, first == args.linears.term[index].first_block,
                  low + i * args.linears.width);
  }
  __syncwarp();
  if (lane == 0 && atomicAdd(&args.mailbox.state->left, 1) == blocks - 1) {
    args.mailbox.state->left = 0;
    args.mailbox.state->launch = launch + 1;
  }
}

// What ends the channels of a warp: each lane's rank of B, and the biases.
template <int CHANNELS>
struct RowEnd {
  float b[CHANNELS];
  float bias[CHANNELS];
};

template <int CHANNELS>
__device__ __forceinline__ void fetch_end(const RowLinearsArgs& args, int index, int n,
                                          RowEnd<CHANNELS>& end) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const TermView& term = args.linears.term[index + i];
    end.bias[i] = term.bias == nullptr ? 0.0F : load_as(term.bias, n, term.bias_type);
    const AdapterView* adapter = term.adapters > 0 ? adapter_of(args.linears, term, 0) : nullptr;
    end.b[i] = 0.0F;
    if (adapter != nullptr && lane < adapter->rank) {
      end.b[i] = adapter->b[static_cast<int64_t>(n) * adapter->rank + lane];
    }
  }
}

// The whole channel from the lanes' shares of its sum along K: low-rank change and bias.
template <int CHANNELS>
__device__ __forceinline__ float end_channel(const RowLinearsArgs& args, int index, int i, int n,
                                             const float* low, const RowEnd<CHANNELS>& end,
                                             float sum) {
  const int lane = threadIdx.x & 31;
  const TermView& term = args.linears.term[index + i];
  const AdapterView* adapter = term.adapters > 0 ? adapter_of(args.linears, term, 0) : nullptr;
  if (adapter != nullptr) {
    const float* own = low + i * args.linears.width;
    for (int r = lane; r < adapter->rank; r += 32) {
      const float b =
          r == lane ? end.b[i] : adapter->b[static_cast<int64_t>(n) * adapter->rank + r];
      sum = fmaf(own[r], b, sum);
    }
  }
  return warp_sum(sum) + end.bias[i];
}

template <class T, int CHANNELS>
__device__ __forceinline__ void store_row(const RowLinearsArgs& args, int index, int n,
                                          const float (&y)[CHANNELS]) {
  if ((threadIdx.x & 31) != 0) {
    return;
  }
  if constexpr (CHANNELS == 1) {
    const TermView& term = args.linears.term[index];
    store_as(y[0], n, term.y_type, term.y);
  } else {  // rounded as if stored between
    const float g = to_float(from_float<T>(y[0]));
    const float u = to_float(from_float<T>(y[1]));
    const float opened = args.gelu ? activate<true>(g).value : activate<false>(g).value;
    static_cast<T*>(args.h)[n] = from_float<T>(u * opened);
  }
}

// sums[i] += rows[i] . x, as `multiply` does for several rows, but the reads of x go out several at
// a time, as many as registers hold.
template <class T, class W, int CHANNELS>
__device__ __forceinline__ void multiply_row(const T* x, const WeightRows<W, CHANNELS>& rows,
                                             const WeightRows<W, CHANNELS>& next, int count,
                                             WeightBatch<W, CHANNELS>& batch,
                                             float (&sums)[CHANNELS]) {
  using Batch = WeightBatch<W, CHANNELS>;
  constexpr int kReads = sizeof(T) == 2 ? 4 : 1;
  constexpr int kRun = Batch::kSteps < kReads ? Batch::kSteps : kReads;
  const int k0 = 8 * static_cast<int>(threadIdx.x & 31);
  for (int base = 0; base < count; base += Batch::kDepth) {
#pragma unroll
    for (int step0 = 0; step0 < Batch::kSteps; step0 += kRun) {
      EightWeights<T> own[kRun];
#pragma unroll
      for (int step = step0; step < step0 + kRun; ++step) {
        const int at = base + 256 * step + k0;
        if (at < count) {
#pragma unroll
          for (size_t word = 0; word < sizeof(T) / 2; ++word) {
            own[step - step0].words[word] = reinterpret_cast<const uint4*>(x + at)[word];
          }
        }
      }
#pragma unroll
      for (int step = step0; step < step0 + kRun; ++step) {
        const int at = base + 256 * step + k0;
        if (at >= count) {
          continue;
        }
        const T* values = reinterpret_cast<const T*>(&own[step - step0]);
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
          const EightWeights<W> stored = batch.of[i][step];
          if (at + Batch::kDepth < count) {
            batch.of[i][step] = load_weights(rows[i] + at + Batch::kDepth);
          } else if (next[0] != nullptr) {
            batch.of[i][step] = load_weights(next[i] + 256 * step + k0);
          }
          const W* weights = reinterpret_cast<const W*>(&stored);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            sums[i] = fmaf(to_float(weights[j]), to_float(values[j]), sums[i]);
          }
        }
      }
    }
  }
}

// CHANNELS is 1, or 2 for a gated pair: channel n of terms 0 and 1.
template <class T, class W, int CHANNELS>
__global__ void __launch_bounds__(kRowLinearsThreads, kLinearsBlocks)
    linears_row(const __grid_constant__ RowLinearsArgs args) {
  extern __shared__ float low[];  // [CHANNELS][width]
  __shared__ float parts[kLinearsWarps][CHANNELS];
  const auto block = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x & 31;
  int index = 0;
  while (CHANNELS == 1 && index + 1 < args.linears.terms &&
         block >= args.linears.term[index + 1].first_block) {
    ++index;
  }
  const TermView& term = args.linears.term[index];
  let_next_start();
  if (warp == kLinearsWarps) {
    shrink_and_gather<T, CHANNELS>(args, index, low);
    __syncthreads();
    return;
  }
  const int split = args.split;
  const int in = args.linears.in;
  const int groups = kLinearsWarps / split;
  const int part = warp % split;
  const int columns = ((in + 255) / 256 + split - 1) / split * 256;
  const int begin = min(in, part * columns);
  const int count = min(in, begin + columns) - begin;
  const int stride = term.blocks * groups;
  const auto point = [&](int n, WeightRows<W, CHANNELS>& rows) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const W* weight = static_cast<const W*>(args.linears.term[index + i].weight);
      rows[i] = n < term.channels ? weight + static_cast<int64_t>(n) * in + begin : nullptr;
    }
  };
  int n = (block - term.first_block) * groups + warp / split;
  WeightRows<W, CHANNELS> rows;
  WeightRows<W, CHANNELS> next;
  WeightBatch<W, CHANNELS> batch;
  RowEnd<CHANNELS> end;
  point(n, rows);
  if (n < term.channels) {
    fetch(rows, count, batch);
    fetch_end(args, index, n, end);
  }
  wait_for_previous();
  const T* x = static_cast<const T*>(args.linears.x) + begin;
  for (bool first = true; first || n < term.channels; first = false) {
    float sums[CHANNELS] = {};
    if (n < term.channels) {
      point(n + stride, next);
      multiply_row(x, rows, next, count, batch, sums);
    }
    if (first && split > 1) {
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        sums[i] = warp_sum(sums[i]);
        if (lane == 0) {
          parts[warp][i] = sums[i];
        }
      }
    }
    if (first && (split > 1 || args.tasks > 0)) {
      __syncthreads();
    }
    if (n >= term.channels || part > 0) {
      return;
    }
    float y[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const float own = split == 1 ? sums[i] : lane < split ? parts[warp + lane][i] : 0.0F;
      y[i] = end_channel(args, index, i, n, low, end, own);
    }
    store_row<T>(args, index, n, y);
    n += stride;
    point(n, rows);
    if (n < term.channels) {
      fetch_end(args, index, n, end);
    }
  }
}

}  // namespace wick::cuda
