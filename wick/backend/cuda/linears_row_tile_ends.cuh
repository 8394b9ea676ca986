// Linear layers of one row by tiles: the warps' sums of a channel, its low-rank change and its bias
// become the output.
#pragma once

#include "wick/backend/cuda/linears_row_ends.cuh"
#include "wick/backend/cuda/linears_row_tile_ring.cuh"

namespace wick::cuda {

// What ends the channels that a thread will end, found ahead of the row.
template <int CHANNELS>
struct TileEnd {
  int rank[CHANNELS];
  float bias[CHANNELS];  // of the first channel
  void* y;
  DType type;
};

template <int CHANNELS>
__device__ __forceinline__ TileEnd<CHANNELS> end_of(const RowLinearsArgs& args,
                                                    const RowShare& share) {
  TileEnd<CHANNELS> end;
  const RowAdapters<CHANNELS> adapters = adapters_of<CHANNELS>(args, share);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    end.rank[i] = adapters.rank[i];
  }
  read_biases(args, share, static_cast<int>(threadIdx.x) / kEndThreads, end.bias);
  end.y = CHANNELS == 1 ? args.linears.term[share.index].y : args.h;
  end.type = args.linears.term[share.index].y_type;
  return end;
}

// A quarter of the ranks from `from` on of a term's channel: the 17th and later, or those of
// channels from the second round on, of which none is at hand.
__device__ __noinline__ float far_ranks(const RowLinearsArgs& args, int index, int channel,
                                        int from, const float* low) {
  const AdapterView* adapter = adapter_of(args.linears, args.linears.term[index], 0);
  const int rank = adapter->rank;
  const float* b = adapter->b + static_cast<int64_t>(channel) * rank;
  float sum = 0.0F;
  for (int r = from + static_cast<int>(threadIdx.x) % kEndThreads; r < rank; r += kEndThreads) {
    sum = fmaf(low[r], b[r], sum);
  }
  return sum;
}

// Brings the warps' sums of each channel, its low-rank change and its bias together.
template <int CHANNELS>
__device__ __forceinline__ void end_tiles(const RowLinearsArgs& args, const RowShare& share,
                                          const TileEnd<CHANNELS>& end, float scale,
                                          unsigned char* shared) {
  static_assert(kLinearsWarps == 2 * kEndThreads);
  constexpr int kNearRanks = kEndRanks * kEndThreads;
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  const float* low = reinterpret_cast<const float*>(shared + args.low_at);
  const auto* parts =
      reinterpret_cast<const float*>(shared + args.parts_at) + 2 * CHANNELS * quarter;
  const auto* near =
      reinterpret_cast<const float*>(shared + args.ends_at) + threadIdx.x * CHANNELS * kEndRanks;
  meet_workers();
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x) / kEndThreads; n < share.channels; n += kEndRows) {
    const bool first = n < kEndRows;
    float y[CHANNELS];
    if constexpr (CHANNELS == 1) {
      const float2 sums = *reinterpret_cast<const float2*>(parts + n * kLinearsWarps);
      y[0] = sums.x + sums.y;
    } else {
      const float4 sums = *reinterpret_cast<const float4*>(parts + n * kLinearsWarps * 2);
      y[0] = sums.x + sums.z;
      y[1] = sums.y + sums.w;
    }
    float bias[CHANNELS];
    if (first) {
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) {
        bias[i] = end.bias[i];
      }
    } else {
      read_biases(args, share, n, bias);
    }
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      y[i] = fmaf(scale, y[i], bias[i]);
      const int rank = end.rank[i];
      if (rank > 0) {
        const float* own = low + i * args.linears.width;
        if (first) {
#pragma unroll
          for (int j = 0; j < kEndRanks; ++j) {
            const int r = kEndRanks * quarter + j;
            y[i] = r < rank ? fmaf(own[r], near[i * kEndRanks + j], y[i]) : y[i];
          }
        }
        if (!first || rank > kNearRanks) {
          y[i] += far_ranks(args, share.index + i, share.channel(n), first ? kNearRanks : 0, own);
        }
      }
    }
    const uint32_t group = 0xFU << (threadIdx.x % 32 / kEndThreads * kEndThreads);
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      y[i] += __shfl_xor_sync(group, y[i], 1);
      y[i] += __shfl_xor_sync(group, y[i], 2);
    }
    if (quarter == 0) {
      if constexpr (CHANNELS == 1) {
        store_as(y[0], share.channel(n), end.type, end.y);
      } else {
        store_row<__nv_bfloat16>(args, share.index, share.channel(n), y);
      }
    }
  }
}

}  // namespace wick::cuda
