// Programs of one row: attention of the token, whose key and value go to the cache.
//
// As many blocks as the keys ask for share a key head: runs of 16 keys are dealt out to their
// warps, where heads are wide two warps a run, each with half of the values' channels. A block
// brings its warps' sums together; where there are several blocks, they post theirs, and each
// brings a share of the channels together.
#pragma once

#include "wick/backend/cuda/rope.cuh"
#include "wick/backend/cuda/row_attention_sums.cuh"

namespace wick::cuda {

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
}

}  // namespace wick::cuda
