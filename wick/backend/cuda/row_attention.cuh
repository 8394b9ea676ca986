// Programs of one row: attention of the token, whose key and value go to the cache.
//
// As many blocks as the keys ask for share a key head: runs of 16 keys are dealt out to their
// warps, where heads are wide two warps a run, each with half of the values' channels. A block
// brings its warps' sums together; where there are several blocks, they post theirs, and each
// brings a share of the channels together.
#pragma once

#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/rope.cuh"
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

// Asks for the rows of the cache that this block will read to come to the L2. By a warp, once what
// is ahead of the program in the stream is done.
__device__ __forceinline__ void prefetch_cache(const AttentionPhase& phase,
                                               const HeadShare& share) {
  if (!share.takes_part()) {
    return;
  }
  const int lines = (2 * phase.call.D + 127) / 128;  // of a row: one or two
  const int64_t row = static_cast<int64_t>(phase.call.G) * phase.call.D;
  const int stride = share.blocks * kKeysOfWarp;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
  for (int from = share.keys.begin + share.block * kKeysOfWarp; from < share.keys.end;
       from += stride) {
#pragma unroll 1
    for (int i = lane; i < kKeysOfWarp * lines; i += 32) {
      const int key = from + (lines == 1 ? i : i / 2);
      if (key < share.keys.end) {
        const int64_t at = key * row + share.g * phase.call.D + (lines == 1 ? 0 : i % 2 * 64);
        prefetch_to_l2(phase.k_cache + at);
        prefetch_to_l2(phase.v_cache + at);
      }
    }
  }
}

// Runs of eight neighbours of what the phase before posted, or of memory.
template <int COUNT>
__device__ __forceinline__ void read_eights(const __nv_bfloat16* memory, const RowWords& words,
                                            int posted_at, const int (&at)[COUNT],
                                            uint4 (&values)[COUNT]) {
  if (memory != nullptr) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      values[i] = *reinterpret_cast<const uint4*>(memory + at[i]);
    }
    return;
  }
  const uint64_t* from[2 * COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    from[2 * i] = words.posted() + (posted_at + at[i]) / 2;
    from[2 * i + 1] = from[2 * i] + 2;
  }
  uint2 fours[2 * COUNT];
  await_fours(from, words.posted_tag(), fours);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    values[i] = {fours[2 * i].x, fours[2 * i].y, fours[2 * i + 1].x, fours[2 * i + 1].y};
  }
}

// Turns the token's queries and key of the head into shared memory, where its value goes too.
template <int kD>
__device__ __forceinline__ void turn_token(const AttentionPhase& phase, const RowWords& words,
                                           int g, int position, unsigned char* work,
                                           const AttentionWork<kD>& places) {
  const AttentionCall& call = phase.call;
  const HeadShape shape{call.D, phase.R};
  const int runs = shape.runs<8>();
  const int heads = call.H / call.G;
  const int rows = (heads + 1) * runs;
  const float* angles = phase.table + static_cast<int64_t>(position) * phase.R;
  auto* q = reinterpret_cast<__nv_bfloat16*>(work + places.q);
  auto* fresh = reinterpret_cast<__nv_bfloat16*>(work + places.fresh);
  const int k_at = call.H * call.D;
  const int v_at = k_at + call.G * call.D;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < rows + call.D / 8; at += kWorkers) {
    if (at >= rows) {
      const int c = 8 * (at - rows);
      uint4 value[1];
      read_eights(phase.v, words, v_at, {g * call.D + c}, value);
      *reinterpret_cast<uint4*>(fresh + kD + c) = value[0];
      continue;
    }
    const int head = at / runs;
    const int i = 8 * (at % runs);
    const bool is_key = head == heads;
    const int begin = (is_key ? g : g * heads + head) * call.D;
    // Pairs (j, j + R/2), or channels that do not rotate.
    const int half = phase.R / 2;
    const bool rotates = i < half;
    const int first = rotates ? i : i + half;
    const int second = rotates ? i + half : first;
    uint4 words_of[2];
    read_eights(is_key ? phase.k : phase.q, words, is_key ? k_at : 0,
                {begin + first, begin + second}, words_of);
    __nv_bfloat16* to = is_key ? fresh : q + head * kD;
    if (rotates) {
      float low[8];
      float high[8];
      float cosine[8];
      float sine[8];
      load8(reinterpret_cast<const __nv_bfloat16*>(&words_of[0]), low);
      load8(reinterpret_cast<const __nv_bfloat16*>(&words_of[1]), high);
      load8(angles + i, cosine);
      load8(angles + half + i, sine);
      turn_pairs(cosine, sine, 1.0F, low, high);
      store8(low, to + first);
      store8(high, to + second);
    } else {
      *reinterpret_cast<uint4*>(to + first) = words_of[0];
    }
  }
}

// Puts the token's key and value into the cache.
template <int kD>
__device__ __forceinline__ void append_token(const AttentionPhase& phase, int g, int position,
                                             const __nv_bfloat16* fresh) {
  const int chunks = phase.call.D / 8;
  const int at = static_cast<int>(threadIdx.x);
  if (at < 2 * chunks) {
    const bool is_key = at < chunks;
    const int chunk = is_key ? at : at - chunks;
    __nv_bfloat16* cache = (is_key ? phase.k_cache : phase.v_cache) +
                           (static_cast<int64_t>(position) * phase.call.G + g) * phase.call.D;
    reinterpret_cast<uint4*>(cache)[chunk] = read_chunk(fresh + (is_key ? 0 : kD), chunk, true);
  }
}

// Where a chunk of 16 bytes of a run's values lies: so that no two of eight lanes that read
// together meet in a bank.
__device__ __forceinline__ uint32_t value_place(int key, int chunk) {
  return key * kValueBytes + (chunk ^ key / 2 % 4 * 2) * 16;
}

// Asks for a warp's channels of the values of 16 keys from `from` on, of which those from `end` on
// and `skipped` are zero.
__device__ __forceinline__ void fetch_values(const __nv_bfloat16* v, uint32_t row_elements,
                                             int from, int end, int skipped, int chunks,
                                             uint32_t to, int lane) {
#pragma unroll
  for (int i = 0; i < kKeysOfWarp / 4; ++i) {
    const int key = lane / 8 + 4 * i;
    const int chunk = lane % 8;
    const bool valid = from + key < end && from + key != skipped && chunk < chunks;
    // Where it is not read, still an address of the cache.
    const int row = valid ? from + key : from;
    copy16_async(to + value_place(key, chunk), v + row * row_elements + (valid ? chunk * 8 : 0),
                 valid);
  }
  commit_copies();
}

// What a lane multiplies of them, once they are there; the row of the key `fresh` is put in.
__device__ __forceinline__ void await_values(uint32_t fresh_value, int from, int fresh, int chunks,
                                             uint32_t values, int lane, uint4 (&of_lane)[1][4]) {
  wait_for_copies<0>();
  __syncwarp();
  if (fresh >= from && fresh < from + kKeysOfWarp) {
    if (lane < min(chunks, 8)) {
      write_shared(values + value_place(fresh - from, lane), read_shared(fresh_value + lane * 16));
    }
    __syncwarp();
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int key = n / 2 * 8 + 2 * (lane % 4) + n % 2;
    of_lane[0][n] = read_shared(values + value_place(key, lane / 4));
  }
  __syncwarp();  // before others are asked for
}

// A warp's sums of its values' channels, and their statistics, to where the block finds them.
template <int kD, int kHalves>
__device__ __forceinline__ void leave_sums(const DecodeWarp<kD, kWarpChannels, kHalves>& mine,
                                           int heads, float* o, ScoreSums* sums) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int query = lane / 4 + 8 * half;
    float sum = mine.sum[half];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    if (query >= heads) {
      continue;
    }
    if (lane % 4 == 0 && sums != nullptr) {
      sums[query] = {mine.largest[half], sum};
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      auto* to = reinterpret_cast<float4*>(o + query * kWarpChannels + (2 * (lane % 4) + c) * 8);
      const auto value = [&](int j) { return mine.o[0][j][2 * half + c]; };
      to[0] = {value(0), value(1), value(2), value(3)};
      to[1] = {value(4), value(5), value(6), value(7)};
    }
  }
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

// What a worker does of a phase. kHalves: 1 for up to eight queries a key head, else 2.
template <int kD, int kHalves>
__device__ __forceinline__ void run_attention(const RowPhase& described, const HeadShare& share,
                                              const RowWords& words, unsigned char* work) {
  const AttentionPhase& phase = described.attention;
  if (!share.takes_part()) {
    return;
  }
  const AttentionCall& call = phase.call;
  const int heads = call.H / call.G;
  const int chunks = call.D / 8;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int writer = warp / kWarpsOfRun<kD>;
  const AttentionWork<kD> at = attention_work<kD>(phase.writers, heads);
  const int position = share.position;
  const uint32_t k_row = call.G * call.D;
  const __nv_bfloat16* k = phase.k_cache + static_cast<int64_t>(share.g) * call.D;
  const int first_chunk = warp % kWarpsOfRun<kD> * (kWarpChannels / 8);
  const __nv_bfloat16* v = phase.v_cache + share.g * call.D + first_chunk * 8;
  const int end = share.keys.end;
  const int first = writer < phase.writers
                        ? share.keys.begin + (writer * share.blocks + share.block) * kKeysOfWarp
                        : end;
  DecodeStep<kD, kWarpChannels> step;
  if (first < end) {
    step.read_keys(k, k_row, first, end, position, chunks, static_cast<int>(thread_here() % 32));
  }
  meet_workers();  // all have ended the phase before, whose shared memory this is
  uint32_t own = shared_address(work) + at.warps + warp * at.warp_bytes;
  if (first < end) {
    fetch_values(v, k_row, first, end, position, chunks - first_chunk, own,
                 static_cast<int>(thread_here() % 32));
  }
  turn_token<kD>(phase, words, share.g, position, work, at);
  meet_workers();
  if (share.block == 0) {
    append_token<kD>(phase, share.g, position,
                     reinterpret_cast<const __nv_bfloat16*>(work + at.fresh));
  }
  if (first < end) {
    DecodeWarp<kD, kWarpChannels, kHalves> mine;
    mine.start();
    const uint32_t q = shared_address(work) + at.q;
    const uint32_t fresh = shared_address(work) + at.fresh;
    const float scale2 = call.scale * kLog2E;
    const int stride = phase.writers * share.blocks * kKeysOfWarp;
#pragma unroll 1
    for (int from = first; from < end; from += stride) {
      // Nothing that depends on it is worked out ahead of the loop: registers do not suffice.
      const int lane = static_cast<int>(thread_here() % 32);
      if (from > first) {
        step.read_keys(k, k_row, from, end, position, chunks, lane);
        fetch_values(v, k_row, from, end, position, chunks - first_chunk, own, lane);
      }
      step.insert_key(fresh, from, position, chunks, lane);
      typename DecodeWarp<kD, kWarpChannels, kHalves>::Scores s = {};
      DecodeWarp<kD, kWarpChannels, kHalves>::score(
          [&](int i, int half) {
            const int chunk = lane % 4 + 4 * i;
            const uint32_t row = q + min(lane / 4 + 8 * half, heads - 1) * (2 * kD);
            return chunk < chunks ? read_shared(row + chunk * 16) : uint4{0, 0, 0, 0};
          },
          step.keys, s);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 2 * kHalves; ++c) {
          s[n][c] = from + n * 8 + 2 * (lane % 4) + c % 2 < end ? s[n][c] : -INFINITY;
        }
      }
      mine.soften(scale2, s);
      uint4 values[1][4];
      await_values(fresh + 2 * kD + first_chunk * 16, from, position, chunks - first_chunk, own,
                   lane, values);
      mine.add_values(s, values);
    }
    leave_sums(mine, heads, reinterpret_cast<float*>(work + at.warps + warp * at.warp_bytes),
               first_chunk == 0 ? reinterpret_cast<ScoreSums*>(work + at.sums) + writer * kQueries
                                : nullptr);
  }
  meet_workers();
  // Those that had a run.
  int writers = max(end - share.keys.begin + kKeysOfWarp - 1, 0) / kKeysOfWarp;
  if (share.blocks > 1) {
    writers = static_cast<int>(static_cast<unsigned>(writers - share.block + share.blocks - 1) /
                               static_cast<unsigned>(share.blocks));
  }
  writers = min(phase.writers, writers);
  find_factors(work, at, writers, heads);
  meet_workers();
  if (share.blocks > 1) {
    exchange_sums(described, share, words, writers, work, at);
  } else {
    const int pairs_of_head = call.D / 2;
#pragma unroll 1
    for (int pair = static_cast<int>(threadIdx.x); pair < heads * pairs_of_head; pair += kWorkers) {
      const auto query =
          static_cast<int>(static_cast<unsigned>(pair) / static_cast<unsigned>(pairs_of_head));
      const PairSums sums =
          block_sums(work, at, writers, query, 2 * (pair - query * pairs_of_head));
      store_pair(described, words, 2 * (share.g * heads * pairs_of_head + pair), sums);
    }
  }
  meet_workers();  // the next phase writes where this one read
}

}  // namespace wick::cuda
