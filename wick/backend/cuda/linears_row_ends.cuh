// Linear layers of one row: the parts of each channel, its low-rank change and its bias become the
// output.
#pragma once

#include "wick/backend/cuda/activate.cuh"
#include "wick/backend/cuda/linears_row_share.cuh"

namespace wick::cuda {

// Four threads end a channel together: thread t of them has ranks 4 t to 4 t + 3 of every 16.
constexpr int kEndThreads = 4;
constexpr int kEndRanks = 4;
constexpr int kEndRows = kLinearsThreads / kEndThreads;  // at a time

template <int CHANNELS>
struct RowAdapters {
  const float* b[CHANNELS];
  int rank[CHANNELS];  // 0: none
};

template <int CHANNELS>
__device__ __forceinline__ RowAdapters<CHANNELS> adapters_of(const RowLinearsArgs& args,
                                                             const RowShare& share) {
  RowAdapters<CHANNELS> adapters;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const TermView& term = args.linears.term[share.index + i];
    const AdapterView* adapter = term.adapters > 0 ? adapter_of(args.linears, term, 0) : nullptr;
    adapters.rank[i] = adapter == nullptr ? 0 : adapter->rank;
    adapters.b[i] = adapter == nullptr ? nullptr : adapter->b;
  }
  return adapters;
}

__device__ __forceinline__ void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// What ends a channel, but its parts.
template <int CHANNELS>
struct RowEnd {
  float b[CHANNELS][kEndRanks];
  float bias[CHANNELS];
};

template <int CHANNELS>
__device__ __forceinline__ void read_biases(const RowLinearsArgs& args, const RowShare& share,
                                            int n, float (&bias)[CHANNELS]) {
  const bool has = threadIdx.x % kEndThreads == 0 && n < share.channels;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const TermView& term = args.linears.term[share.index + i];
    bias[i] =
        term.bias == nullptr || !has ? 0.0F : load_as(term.bias, share.channel(n), term.bias_type);
  }
}

// Asks for the ends of the first channels, each thread for what it will use (a group of copies into
// `to`), and for those of the others to come as near as the L2.
template <int CHANNELS>
__device__ __forceinline__ void fetch_ends(const RowLinearsArgs& args, const RowShare& share,
                                           uint32_t to) {
  const RowAdapters<CHANNELS> adapters = adapters_of<CHANNELS>(args, share);
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  const int n = static_cast<int>(threadIdx.x) / kEndThreads;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const int rank = adapters.rank[i];
    const float* b = adapters.b[i] + static_cast<int64_t>(share.channel(n)) * rank;
    for (int j = 0; j < kEndRanks; ++j) {
      const int r = kEndRanks * quarter + j;
      if (r < rank && n < share.channels) {
        copy4_async(to + 4 * ((threadIdx.x * CHANNELS + i) * kEndRanks + j), b + r);
      }
    }
    for (int other = kEndRows + static_cast<int>(threadIdx.x); other < share.channels;
         other += kLinearsThreads) {
      for (int r = 0; r < rank; r += 32) {
        prefetch_to_l2(adapters.b[i] + static_cast<int64_t>(share.channel(other)) * rank + r);
      }
    }
  }
  commit_copies();
}

template <class T, int CHANNELS>
__device__ __forceinline__ void store_row(const RowLinearsArgs& args, int index, int channel,
                                          const float (&y)[CHANNELS]) {
  if constexpr (CHANNELS == 1) {
    const TermView& term = args.linears.term[index];
    store_as(y[0], channel, term.y_type, term.y);
  } else {  // rounded as if stored between
    const float g = to_float(from_float<T>(y[0]));
    const float u = to_float(from_float<T>(y[1]));
    const float opened = args.gelu ? activate<true>(g).value : activate<false>(g).value;
    static_cast<T*>(args.h)[channel] = from_float<T>(u * opened);
  }
}

// Brings the parts of each channel, its low-rank change and its bias together.
template <class T, int CHANNELS>
__device__ __forceinline__ void end_rows(const RowLinearsArgs& args, const RowShare& share,
                                         const float (&biases)[CHANNELS], unsigned char* shared) {
  const RowAdapters<CHANNELS> adapters = adapters_of<CHANNELS>(args, share);
  const float* low = reinterpret_cast<const float*>(shared + args.low_at);
  const float* parts = reinterpret_cast<const float*>(shared + args.parts_at);
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  int n = static_cast<int>(threadIdx.x) / kEndThreads;
  wait_for_copies<0>();
  __syncthreads();
  for (int first = 0; first < share.channels; first += kEndRows, n += kEndRows) {
    RowEnd<CHANNELS> end;
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const float* b = first == 0 ? reinterpret_cast<const float*>(shared + args.ends_at) +
                                        (threadIdx.x * CHANNELS + i) * kEndRanks
                                  : adapters.b[i] + kEndRanks * quarter +
                                        static_cast<int64_t>(share.channel(n)) * adapters.rank[i];
#pragma unroll
      for (int j = 0; j < kEndRanks; ++j) {
        const bool has = kEndRanks * quarter + j < adapters.rank[i] && n < share.channels;
        end.b[i][j] = has ? b[j] : 0.0F;
      }
      end.bias[i] = biases[i];
    }
    if (first > 0) {
      read_biases(args, share, n, end.bias);
    }
    float y[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      y[i] = end.bias[i];
      const float* own = low + i * args.linears.width;
      const int rank = adapters.rank[i];
#pragma unroll
      for (int j = 0; j < kEndRanks; ++j) {
        const int r = kEndRanks * quarter + j;
        y[i] = r < rank ? fmaf(own[r], end.b[i][j], y[i]) : y[i];
      }
      if (n < share.channels) {
        const float* b = adapters.b[i] + static_cast<int64_t>(share.channel(n)) * rank;
        for (int r = kEndRanks * (quarter + kEndThreads); r < rank; r += kEndRanks * kEndThreads) {
          for (int j = r; j < min(r + kEndRanks, rank); ++j) {
            y[i] = fmaf(own[j], b[j], y[i]);
          }
        }
        for (int part = quarter; part < args.split; part += kEndThreads) {
          y[i] += parts[(n * args.split + part) * CHANNELS + i];
        }
      }
      y[i] += __shfl_xor_sync(~0U, y[i], 1);
      y[i] += __shfl_xor_sync(~0U, y[i], 2);
    }
    if (quarter == 0 && n < share.channels) {
      store_row<T>(args, share.index, share.channel(n), y);
    }
  }
}

}  // namespace wick::cuda
