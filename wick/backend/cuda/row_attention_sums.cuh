// Programs of one row: how the sums of the warps and blocks that share a key head come together.
#pragma once

#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/row_linears.cuh"

namespace wick::cuda {

template <int kD>
constexpr int kWarpsOfRun = kD / 64;
template <int kD>
constexpr int kMostWriters = kProgramWarps / kWarpsOfRun<kD>;

// Of a query: its largest score, times scale log2 e, and the sum of powers relative to it.
struct ScoreSums {
  float largest, sum;
};

constexpr int kWarpChannels = 64;  // of the values, that a warp has
constexpr int kValueBytes = 2 * kWarpChannels;
constexpr int kBytesOfValues = kKeysOfWarp * kValueBytes;

// How a block uses its shared memory: bytes from its begin.
template <int kD>
struct AttentionWork {
  int warps, warp_bytes;  // of each warp the values of a run, and at last its sums [heads, 64]
  int sums, q, fresh, factors, all, end;
};
template <int kD>
__host__ __device__ AttentionWork<kD> attention_work(int writers, int heads) {
  AttentionWork<kD> work{};
  work.warp_bytes = heads * kWarpChannels * 4;
  work.warp_bytes = work.warp_bytes < kBytesOfValues ? kBytesOfValues : work.warp_bytes;
  work.sums = work.warps + writers * kWarpsOfRun<kD> * work.warp_bytes;
  work.q = work.sums + writers * kQueries * static_cast<int>(sizeof(ScoreSums));
  work.fresh = work.q + heads * kD * 2;
  work.factors = work.fresh + 2 * kD * 2;
  work.all = work.factors + kQueries * kProgramWarps * 4;
  work.end = work.all + kQueries * static_cast<int>(sizeof(ScoreSums));
  return work;
}

// Two channels of a query, over several blocks: relative to the largest score of all.
struct PairSums {
  ScoreSums of;
  float2 o;

  __device__ __forceinline__ void add(const ScoreSums& other, float2 o_of_other) {
    const float largest = fmaxf(of.largest, other.largest);
    const float shift = largest == -INFINITY ? 0.0F : largest;
    const float own = fast_exp2(of.largest - shift);
    const float others = fast_exp2(other.largest - shift);
    of = {largest, own * of.sum + others * other.sum};
    o = {own * o.x + others * o_of_other.x, own * o.y + others * o_of_other.y};
  }
};

// What the sums of each of the first `writers` are to be multiplied with, [heads, kMost], and the
// sums over them all, [heads]. By all workers, of which 16 lanes take a query.
template <int kD>
__device__ __forceinline__ void find_factors(unsigned char* work, const AttentionWork<kD>& places,
                                             int writers, int heads) {
  constexpr int kMost = kProgramWarps;
  const int query = static_cast<int>(threadIdx.x) / kMost;
  const int writer = static_cast<int>(threadIdx.x) % kMost;
  ScoreSums of{-INFINITY, 0.0F};
  if (query < heads && writer < writers) {
    of = reinterpret_cast<const ScoreSums*>(work + places.sums)[writer * kQueries + query];
  }
  float largest = of.largest;
#pragma unroll
  for (int distance = kMost / 2; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, distance));
  }
  const float factor = fast_exp2(of.largest - (largest == -INFINITY ? 0.0F : largest));
  float sum = factor * of.sum;
#pragma unroll
  for (int distance = kMost / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0U, sum, distance);
  }
  if (query < heads) {
    reinterpret_cast<float*>(work + places.factors)[query * kMost + writer] = factor;
    if (writer == 0) {
      reinterpret_cast<ScoreSums*>(work + places.all)[query] = {largest, sum};
    }
  }
}

// What a block's warps left of a query's two channels.
template <int kD>
__device__ __forceinline__ PairSums block_sums(const unsigned char* work,
                                               const AttentionWork<kD>& places, int writers,
                                               int query, int channel) {
  const float* factors =
      reinterpret_cast<const float*>(work + places.factors) + query * kProgramWarps;
  const unsigned char* o = work + places.warps + channel / kWarpChannels * places.warp_bytes +
                           4 * (query * kWarpChannels + channel % kWarpChannels);
  PairSums all{reinterpret_cast<const ScoreSums*>(work + places.all)[query], {0.0F, 0.0F}};
#pragma unroll 4
  for (int w = 0; w < writers; ++w) {
    const float2 pair = *reinterpret_cast<const float2*>(o);
    all.o.x = fmaf(factors[w], pair.x, all.o.x);
    all.o.y = fmaf(factors[w], pair.y, all.o.y);
    o += kWarpsOfRun<kD> * places.warp_bytes;
  }
  return all;
}

// Hands two channels of the result on.
__device__ __forceinline__ void store_pair(const RowPhase& described, const RowWords& words, int at,
                                           const PairSums& sums) {
  const float factor = sums.of.sum == 0.0F ? 0.0F : __fdividef(1.0F, sums.of.sum);
  const uint32_t pair = pack_bf16(sums.o.x * factor, sums.o.y * factor);
  if (described.posts) {
    post_word(words.posts() + at / 2, pair, words.tag);
  }
  if (described.attention.o != nullptr) {
    *reinterpret_cast<uint32_t*>(described.attention.o + at) = pair;
  }
}

// Brings the blocks of a head together: each posts its sums and takes every `blocks`-th pair of
// channels of all.
template <int kD>
__device__ __noinline__ void exchange_sums(const RowPhase& described, HeadShare share,
                                           RowWords words, int writers, unsigned char* work,
                                           AttentionWork<kD> places) {
  const AttentionPhase& phase = described.attention;
  const int D = phase.call.D;
  const int heads = phase.call.H / phase.call.G;
  const int pairs = heads * D / 2;
  const auto words_at = [&](int block, int query) {
    return words.exchange.parts +
           ((share.g * phase.most_blocks + block) * heads + query) * static_cast<int64_t>(D + 2);
  };
#pragma unroll 1
  for (int pair = static_cast<int>(threadIdx.x); pair < pairs; pair += kWorkers) {
    const int query = pair / (D / 2);
    const int channel = 2 * (pair % (D / 2));
    const PairSums sums = block_sums(work, places, writers, query, channel);
    uint64_t* to = words_at(share.block, query);
    if (channel == 0) {
      post_word(to, __float_as_uint(sums.of.largest), words.tag);
      post_word(to + 1, __float_as_uint(sums.of.sum), words.tag);
    }
    post_word(to + 2 + channel, __float_as_uint(sums.o.x), words.tag);
    post_word(to + 3 + channel, __float_as_uint(sums.o.y), words.tag);
  }
  meet_workers();
  // One thread a block and pair of channels, so that all is asked for at once.
  auto* gathered = reinterpret_cast<PairSums*>(work + places.warps);
  const int own = (pairs - share.block + share.blocks - 1) / share.blocks;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x); item < own * share.blocks; item += kWorkers) {
    const int pair = item / share.blocks * share.blocks + share.block;
    const int query = pair / (D / 2);
    const int channel = 2 * (pair % (D / 2));
    const uint64_t* at = words_at(item % share.blocks, query);
    const uint64_t* const from[4] = {at, at + 1, at + 2 + channel, at + 3 + channel};
    uint32_t values[4];
    await_words(from, words.tag, values);
    gathered[item] = {{__uint_as_float(values[0]), __uint_as_float(values[1])},
                      {__uint_as_float(values[2]), __uint_as_float(values[3])}};
  }
  meet_workers();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < own; i += kWorkers) {
    PairSums sums = gathered[i * share.blocks];
#pragma unroll 1
    for (int block = 1; block < share.blocks; ++block) {
      const PairSums& other = gathered[i * share.blocks + block];
      sums.add(other.of, other.o);
    }
    store_pair(described, words, share.g * heads * D + 2 * (i * share.blocks + share.block), sums);
  }
}

}  // namespace wick::cuda
