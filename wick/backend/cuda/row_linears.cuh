// Programs of one row: a phase of linear layers, from its row to its outputs.
#pragma once

#include "wick/backend/cuda/activate.cuh"
#include "wick/backend/cuda/row_tiles.cuh"

namespace wick::cuda {

// Where a phase reads and writes.
struct RowPlaces {
  RowWords words;
  unsigned char* work;  // shared memory of the phase
  __nv_bfloat16* sum;   // [in], kept from phase to phase
  uint32_t ring;
};

__device__ __forceinline__ float2 floats_of(uint32_t pair) {
  return {low_bf16(pair), high_bf16(pair)};
}

// What the sums of a norm's row are to be multiplied with: 1/rms, from all workers' squares.
__device__ __forceinline__ float norm_scale(const LinearsPhase& phase, const RowShared& shared) {
  if (!phase.norms) {
    return 1.0F;
  }
  float squares = 0.0F;
#pragma unroll
  for (int i = 0; i < kProgramWarps / 4; ++i) {
    const float4 four = reinterpret_cast<const float4*>(shared.squares)[i];
    squares += four.x + four.y + four.z + four.w;
  }
  return rsqrtf(squares * phase.per_column + phase.eps);
}

// COUNT runs of four neighbours from `column` on, a stride apart, of what was posted or lies in
// memory.
template <int COUNT>
__device__ __forceinline__ void read_input(const LinearsPhase& phase, const RowWords& words,
                                           int column, int stride, uint2 (&values)[COUNT]) {
  if (phase.b != nullptr) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int c = column + i * stride;
      values[i] = c < phase.in ? *reinterpret_cast<const uint2*>(phase.b + c) : uint2{0, 0};
    }
    return;
  }
  const uint64_t* from[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int c = column + i * stride;
    from[i] = c < phase.in ? words.posted() + c / 2 : nullptr;
  }
  await_fours(from, words.posted_tag(), values);
}

// x, once it is there, into shared memory: COUNT runs of a thread at a time.
template <int COUNT>
__device__ __forceinline__ void read_row(const LinearsPhase& phase, const RowPlaces& places) {
  constexpr int kStride = 4 * kWorkers;
  auto* x = reinterpret_cast<__nv_bfloat16*>(places.work);
#pragma unroll 1
  for (int column = 4 * static_cast<int>(threadIdx.x); column < phase.in;
       column += COUNT * kStride) {
    uint2 values[COUNT];
    read_input(phase, places.words, column, kStride, values);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (column + i * kStride < phase.in) {
        *reinterpret_cast<uint2*>(x + column + i * kStride) = values[i];
      }
    }
  }
}

// x w of the row that is normed, and the sums of its squares.
__device__ __forceinline__ void weigh_row(const LinearsPhase& phase, const RowPlaces& places,
                                          RowShared& shared) {
  auto* x = reinterpret_cast<__nv_bfloat16*>(places.work);
  const __nv_bfloat16* row = phase.keeps_sum ? places.sum : phase.a;
  float squares = 0.0F;
#pragma unroll 1
  for (int c = 4 * static_cast<int>(threadIdx.x); c < phase.in; c += 4 * kWorkers) {
    const float4 weight = __ldg(reinterpret_cast<const float4*>(phase.norm_weight + c));
    uint2 sum = *reinterpret_cast<const uint2*>(row + c);
    float2 low = floats_of(sum.x);
    float2 high = floats_of(sum.y);
    if (phase.adds) {
      uint2 change[1];
      read_input(phase, places.words, c, 0, change);
      const float2 more_low = floats_of(change[0].x);
      const float2 more_high = floats_of(change[0].y);
      sum = {pack_bf16(low.x + more_low.x, low.y + more_low.y),
             pack_bf16(high.x + more_high.x, high.y + more_high.y)};
      low = floats_of(sum.x);
      high = floats_of(sum.y);
      if (phase.sum != nullptr && blockIdx.x == 0) {
        *reinterpret_cast<uint2*>(phase.sum + c) = sum;
      }
    }
    *reinterpret_cast<uint2*>(x + c) = {pack_bf16(low.x * weight.x, low.y * weight.y),
                                        pack_bf16(high.x * weight.z, high.y * weight.w)};
    *reinterpret_cast<uint2*>(places.sum + c) = sum;
    squares += low.x * low.x + low.y * low.y + high.x * high.x + high.y * high.y;
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) {
    shared.squares[threadIdx.x / 32] = squares;
  }
}

__device__ __forceinline__ float bias_of(const RowTerm& term, int channel) {
  return term.bias == nullptr ? 0.0F : load_as(term.bias, channel, term.bias_type);
}

__device__ __forceinline__ OutputEnd read_end(const LinearsPhase& phase, const BlockShare& share,
                                              int n) {
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  OutputEnd end{};
  if (n < share.channels) {
    const int channel = share.first + n;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 0 || phase.gated) {
        const RowTerm& term = phase.term[share.index + i];
        const int rank = term.rank;
        if (quarter == 0) {
          end.bias[i] = bias_of(term, channel);
        }
        if (rank % 4 == 0 && kEndRanks * quarter < rank) {
          end.b[i] =
              __ldg(reinterpret_cast<const float4*>(term.b + channel * int64_t{rank}) + quarter);
        }
        end.far[i] = rank % 4 != 0 || rank > kEndRanks * kEndThreads;
      }
    }
  }
  return end;
}

// The thread's channel after its first, read ahead of the row too: at the end a read of memory is
// long while weights come in.
__device__ __forceinline__ OutputEnd* kept_end(const LinearsPhase& phase, unsigned char* work) {
  return reinterpret_cast<OutputEnd*>(work + phase.work.ends) + threadIdx.x;
}
__device__ __forceinline__ void keep_end(const LinearsPhase& phase, const BlockShare& share,
                                         unsigned char* work) {
  const int n = kEndRows + static_cast<int>(threadIdx.x) / kEndThreads;
  if (phase.keeps_ends && n < share.channels) {
    *kept_end(phase, work) = read_end(phase, share, n);
  }
}

// What is not at hand of a channel's low-rank change: a quarter of it.
__device__ __noinline__ float far_end(const RowTerm& term, int channel, const float* low) {
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  float y = 0.0F;
  const float* row = term.b + channel * int64_t{term.rank};
  const int from = term.rank % 4 == 0 ? kEndRanks * kEndThreads : 0;
#pragma unroll 1
  for (int r = from + quarter; r < term.rank; r += kEndThreads) {
    y = fmaf(low[r], __ldg(row + r), y);
  }
  return y;
}

// A quarter of a channel: the warps' sums, its low-rank change and its bias.
__device__ __forceinline__ float end_quarter(float scale, int split, bool adapted, const float4& b,
                                             float bias, const float* parts, const float* low) {
  const int quarter = static_cast<int>(threadIdx.x) % kEndThreads;
  float y;
  if (split == kGroupWarps) {
    const float2 sums = reinterpret_cast<const float2*>(parts)[quarter];
    y = sums.x + sums.y;
  } else {
    const float4 sums = reinterpret_cast<const float4*>(parts)[quarter];
    y = sums.x + sums.y + sums.z + sums.w;
  }
  y = fmaf(scale, y, bias);
  return adapted ? dot4(b, reinterpret_cast<const float4*>(low)[quarter], y) : y;
}

// The four quarters together, in each of their threads.
__device__ __forceinline__ float sum_of_quarters(float y) {
  const uint32_t group = 0xFU << (threadIdx.x % 32 / kEndThreads * kEndThreads);
  y += __shfl_xor_sync(group, y, 1);
  return y + __shfl_xor_sync(group, y, 2);
}

// Where the outputs of a phase go and what is special about them. Found after the products: there
// are no registers to keep it in before.
struct RowOutputs {
  void* y;          // of the term, or h; null: not to memory
  uint64_t* posts;  // of the term's first channel; null: not to the next phase
  const float *parts, *low;
  int first, channels;
  int split;
  DType type;
  bool gated, gelu, adapted;
};

__device__ __forceinline__ RowOutputs outputs_of(const RowPhase& described, const BlockShare& share,
                                                 const RowPlaces& places) {
  const LinearsPhase& phase = described.linears;
  const RowTerm& term = phase.term[share.index];
  RowOutputs outputs{.y = phase.gated ? static_cast<void*>(phase.h) : term.y,
                     .posts = described.posts ? places.words.posts() + term.before / 2 : nullptr,
                     .parts = reinterpret_cast<const float*>(places.work + phase.work.parts),
                     .low = reinterpret_cast<const float*>(places.work + phase.work.low),
                     .first = share.first,
                     .channels = share.channels,
                     .split = phase.split,
                     .type = phase.gated ? DType::bf16 : term.y_type,
                     .gated = phase.gated,
                     .gelu = phase.gelu,
                     .adapted = phase.tasks > 0};
  hold(outputs.posts);
  hold(outputs.parts);
  hold(outputs.low);
  return outputs;
}

// Brings the warps' sums of each channel, its low-rank change and its bias together, and hands the
// outputs on.
__device__ __forceinline__ void end_linears(const LinearsPhase& phase, const BlockShare& share,
                                            OutputEnd& end, const RowOutputs& outputs, float scale,
                                            unsigned char* work, uint32_t tag) {
  const float* low = outputs.low;
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x) / kEndThreads; n < outputs.channels; n += kEndRows) {
    const int channel = outputs.first + n;
    const int tile = tile_of(phase, n);
    const int row = n + tile * (kTileRows - phase.tile_channels);
    const float* own = outputs.parts + row * outputs.split;
    float y = end_quarter(scale, outputs.split, outputs.adapted, end.b[0], end.bias[0], own, low);
    if (end.far[0]) {
      y += far_end(phase.term[share.index], channel, low);
    }
    y = sum_of_quarters(y);
    if (outputs.gated) {  // rounded as if stored between
      const float g = to_float(from_float<__nv_bfloat16>(y));
      y = end_quarter(scale, outputs.split, outputs.adapted, end.b[1], end.bias[1],
                      own + kTileRows / 2 * outputs.split, low + phase.width);
      if (end.far[1]) {
        y += far_end(phase.term[1], channel, low + phase.width);
      }
      const float u = to_float(from_float<__nv_bfloat16>(sum_of_quarters(y)));
      y = u * (outputs.gelu ? activate<true>(g).value : activate<false>(g).value);
    }
    if (outputs.posts != nullptr) {  // channels of a block come in pairs
      const uint32_t pair_of_groups = 0xFFU << (threadIdx.x % 32 / 8 * 8);
      const float next = __shfl_down_sync(pair_of_groups, y, kEndThreads);
      if (threadIdx.x % 8 == 0) {
        post_word(outputs.posts + channel / 2, pack_bf16(y, next), tag);
      }
    }
    if (threadIdx.x % kEndThreads == 0 && outputs.y != nullptr) {
      store_as(y, channel, outputs.type, outputs.y);
    }
    const int next = n + kEndRows;
    if (next < outputs.channels) {
      end = phase.keeps_ends && next < 2 * kEndRows ? *kept_end(phase, work)
                                                    : read_end(phase, share, next);
    }
  }
}

// What a worker does of a phase.
__device__ __forceinline__ void run_linears(const RowProgramArgs& program, int p,
                                            const RowPhase& described, const RowPlaces& places,
                                            RowShared& shared) {
  const LinearsPhase& phase = described.linears;
  const BlockShare& share = shared.share[p % kDescribedPhases];
  OutputEnd end = read_end(phase, share, static_cast<int>(threadIdx.x) / kEndThreads);
  meet_workers();  // all have ended the phase before, whose shared memory this is
  keep_end(phase, share, places.work);
  const bool adapted = phase.tasks > 0;
  const TileWork tiles = tile_work(phase, share, shared_address(places.work),
                                   shared_address(places.work) + phase.work.parts, program);
  if (phase.norms) {
    weigh_row(phase, places, shared);
  } else if (phase.in <= 4 * kWorkers) {
    read_row<1>(phase, places);
  } else {
    read_row<3>(phase, places);
  }
  meet_all(adapted);
  if (threadIdx.x == 0) {
    set_multiplies(shared, p);
  }
  multiply_tiles(tiles, places.ring, shared);
  const float scale = norm_scale(phase, shared);
  const RowOutputs outputs = outputs_of(described, share, places);
  meet_all(adapted);
  end_linears(phase, share, end, outputs, scale, places.work, places.words.tag);
}

}  // namespace wick::cuda
