// Attention of one new token, whose key and value it puts into the cache, over a cluster of blocks
// a key head (compute capability 9.0).
//
// The runs of 16 keys are dealt out to the warps of all blocks. What a warp finds (the sums of p v
// relative to its largest score, that score, the sum of p) it writes to the blocks of the cluster
// that bring them together: each has an eighth of the channels. So one launch of small blocks,
// which find room beside the launches before and after, does what one large block took twice as
// long for.
#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/rope.cuh"

namespace wick::cuda {

namespace {

constexpr int kBlocks = 8;  // of a cluster
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWriters = kBlocks * kWarps;
constexpr int kMostKeys = 4096;  // beyond, more blocks than a cluster's read faster

// The token of the call: q is still to be turned, k and v are not in the cache.
struct AppendedToken {
  const int* positions;
  const float* table;  // [P,R]
  int R;
  const __nv_bfloat16 *k, *v;  // [G,D]
  __nv_bfloat16 *k_cache, *v_cache;
};

struct Args {
  AttentionCall call;
  const __nv_bfloat16 *q, *k, *v;  // k and v: the caches
  __nv_bfloat16* o;
  AppendedToken token;
};

// What the warps of the cluster say of a query.
struct WriterStatistics {
  float largest;  // score, times scale log2 e
  float sum;
};

template <int kD, int kRows>
struct ClusterShared {
  float o[kWriters][kRows][kD / kBlocks];  // this block's channels
  WriterStatistics of[kRows][kWriters];
  __nv_bfloat16 q[kRows][kD];  // turned
  __nv_bfloat16 fresh[2][kD];  // the token's key, turned, and its value
  float angles[kD];
};

// Asks for the rows of the cache that this block will read to come to the L2: they are not read
// before what is ahead in the stream is done, which may have written them.
template <int kD>
__device__ __forceinline__ void prefetch_keys(const Args& args, int g, const VisibleKeys& keys) {
  constexpr int kLines = (kD + 63) / 64;  // of a row, 128 bytes each
  const int64_t row = static_cast<int64_t>(args.call.G) * args.call.D;
  const int first = keys.begin + cluster_rank() * kKeysOfWarp;
  const int steps = (keys.end - first + kBlocks * kKeysOfWarp - 1) / (kBlocks * kKeysOfWarp);
  for (int i = static_cast<int>(threadIdx.x); i < steps * kKeysOfWarp * kLines; i += kThreads) {
    const int of_block = i / kLines;
    const int key = first + of_block / kKeysOfWarp * kBlocks * kKeysOfWarp + of_block % kKeysOfWarp;
    if (key < keys.end) {
      const int64_t at = key * row + g * args.call.D + i % kLines * 64;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(args.k + at));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(args.v + at));
    }
  }
}

// Turns the token's queries and key of key head g into shared memory, where its value goes too.
template <int kD, int kRows>
__device__ __forceinline__ void turn_token(const Args& args, int g,
                                           ClusterShared<kD, kRows>& shared) {
  const AttentionCall& call = args.call;
  const HeadShape shape{call.D, args.token.R};
  const int runs = shape.runs<8>();
  const int heads = call.H / call.G;
  const int work = (heads + 1) * runs + call.D / 8;
  for (int at = static_cast<int>(threadIdx.x); at < work; at += kThreads) {
    const int head = at / runs;
    if (head < heads) {
      rotate_run<8>(args.q + (static_cast<int64_t>(g) * heads + head) * call.D, shared.angles, 1.0F,
                    shape, at % runs, shared.q[head]);
    } else if (head == heads) {
      rotate_run<8>(args.token.k + static_cast<int64_t>(g) * call.D, shared.angles, 1.0F, shape,
                    at % runs, shared.fresh[0]);
    } else {
      const int chunk = at - (heads + 1) * runs;
      reinterpret_cast<uint4*>(shared.fresh[1])[chunk] =
          read_chunk(args.token.v + static_cast<int64_t>(g) * call.D, chunk, true);
    }
  }
}

// Puts the token's key and value into the cache.
template <int kD, int kRows>
__device__ __forceinline__ void append_token(const Args& args, int g, int position,
                                             const ClusterShared<kD, kRows>& shared) {
  const int chunks = args.call.D / 8;
  for (int at = static_cast<int>(threadIdx.x); at < 2 * chunks; at += kThreads) {
    const bool is_key = at < chunks;
    const int chunk = is_key ? at : at - chunks;
    __nv_bfloat16* cache = (is_key ? args.token.k_cache : args.token.v_cache) +
                           (static_cast<int64_t>(position) * args.call.G + g) * args.call.D;
    reinterpret_cast<uint4*>(cache)[chunk] = read_chunk(shared.fresh[is_key ? 0 : 1], chunk, true);
  }
}

// A warp's sums and statistics, to the blocks that bring them together.
template <int kD, int kRows>
__device__ __forceinline__ void hand_over(const DecodeWarp<kD>& mine, int count,
                                          ClusterShared<kD, kRows>& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int writer = static_cast<int>(threadIdx.x / 32) * kBlocks + cluster_rank();
#pragma unroll
  for (int half = 0; half < kRows / 8; ++half) {
    const int query = lane / 4 + 8 * half;
    float sum = mine.sum[half];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    if (query >= count) {
      continue;
    }
#pragma unroll
    for (int i = 0; i < kBlocks / 4; ++i) {
      WriterStatistics& to = shared.of[query][writer];
      store_to_peer(float2{mine.largest[half], sum}, reinterpret_cast<float2*>(&to),
                    kBlocks / 4 * (lane % 4) + i);
    }
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        constexpr int kChunksOfBlock = kD / 8 / kBlocks;
        const int chunk = 2 * (lane % 4) + c + 8 * i;
        auto* to = reinterpret_cast<float4*>(&shared.o[writer][query][chunk % kChunksOfBlock * 8]);
        const auto value = [&](int j) { return mine.o[i][j][2 * half + c]; };
        store_to_peer(float4{value(0), value(1), value(2), value(3)}, to, chunk / kChunksOfBlock);
        store_to_peer(float4{value(4), value(5), value(6), value(7)}, to + 1,
                      chunk / kChunksOfBlock);
      }
    }
  }
}

// The result of this block's channels, from the first `writers`.
template <int kD, int kRows>
__device__ __forceinline__ void bring_together(const Args& args, int g, int count, int writers,
                                               const ClusterShared<kD, kRows>& shared) {
  constexpr int kChannels = kD / kBlocks;
  for (int at = static_cast<int>(threadIdx.x); at < count * kChannels; at += kThreads) {
    const int query = at / kChannels;
    const int i = at % kChannels;
    const int channel = cluster_rank() * kChannels + i;
    if (channel >= args.call.D) {
      continue;
    }
    float largest = -INFINITY;
#pragma unroll 4
    for (int w = 0; w < writers; ++w) {
      largest = fmaxf(largest, shared.of[query][w].largest);
    }
    float sum = 0.0F;
    float o = 0.0F;
#pragma unroll 4
    for (int w = 0; w < writers; ++w) {
      const WriterStatistics of = shared.of[query][w];
      const float factor = fast_exp2(of.largest - largest);
      sum = fmaf(factor, of.sum, sum);
      o = fmaf(factor, shared.o[w][query][i], o);
    }
    const int64_t to = (static_cast<int64_t>(g) * count + query) * args.call.D + channel;
    args.o[to] = __float2bfloat16_rn(sum == 0.0F ? 0.0F : o / sum);
  }
}

// Grid: G clusters.
template <int kD, int kRows>
__global__ void __launch_bounds__(kThreads, kD <= 64 ? 4 : 2)
    decode_cluster(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ClusterShared<kD, kRows>*>(memory);
  const AttentionCall& call = args.call;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int g = static_cast<int>(blockIdx.x) / kBlocks;
  const int count = call.H / call.G;
  const int chunks = call.D / 8;
  let_next_start();
  cluster_arrive_relaxed();  // all blocks have begun: before they are written to
  const int position = args.token.positions[0];
  for (int i = static_cast<int>(threadIdx.x); i < args.token.R; i += kThreads) {
    shared.angles[i] = args.token.table[static_cast<int64_t>(position) * args.token.R + i];
  }
  const VisibleKeys keys = visible_keys(call, 0);
  prefetch_keys<kD>(args, g, keys);
  cluster_wait();
  __syncthreads();
  wait_for_previous();

  const int64_t k_row = static_cast<int64_t>(call.G) * call.D;
  const __nv_bfloat16* k = args.k + static_cast<int64_t>(g) * call.D;
  const __nv_bfloat16* v = args.v + static_cast<int64_t>(g) * call.D;
  const int first = keys.begin + (warp * kBlocks + cluster_rank()) * kKeysOfWarp;
  DecodeStep<kD> step;
  if (first < keys.end) {
    step.read(k, v, k_row, first, keys.end, position, chunks);
  }
  turn_token(args, g, shared);
  __syncthreads();
  if (cluster_rank() == 0) {
    append_token(args, g, position, shared);
  }
  DecodeWarp<kD> mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = lane / 4 + 8 * half;
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const int chunk = lane % 4 + 4 * i;
      mine.q[i][half] =
          read_chunk(shared.q[min(query, count - 1)], chunk, query < count && chunk < chunks);
    }
  }
  mine.start();
  const float scale2 = call.scale * kLog2E;
  for (int from = first; from < keys.end; from += kWriters * kKeysOfWarp) {
    if (from > first) {
      step.read(k, v, k_row, from, keys.end, position, chunks);
    }
    step.insert(shared.fresh[0], shared.fresh[1], from, position, chunks);
    float s[2][4] = {};
    mine.score(step.keys, s);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s[n][c] = from + n * 8 + 2 * (lane % 4) + c % 2 < keys.end ? s[n][c] : -INFINITY;
      }
    }
    mine.soften(scale2, s);
    mine.add_values(s, step.values);
  }
  if (first < keys.end) {
    hand_over(mine, count, shared);
  }
  cluster_arrive();
  cluster_wait();
  const int writers = min((keys.end - keys.begin + kKeysOfWarp - 1) / kKeysOfWarp, kWriters);
  bring_together(args, g, count, writers, shared);
}

template <int kD, int kRows>
void launch(const Context& context, const Args& args) {
  constexpr int kBytes = sizeof(ClusterShared<kD, kRows>);
  const auto kernel = decode_cluster<kD, kRows>;
  allow_shared(kernel, kBytes);
  // As the launches around it have it (linears_row.cu).
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "attention: shared memory");
  launch_clusters(kernel, static_cast<unsigned>(args.call.G * kBlocks), kThreads, kBlocks, kBytes,
                  context.stream, true, args);
  check_launch("attention of one token");
}

}  // namespace

bool append_attention(const Context& context, const FreshTokens& tokens, const Tensor& k_cache,
                      const Tensor& v_cache, const Tensor& spans, const AttentionArgs& args,
                      const Tensor& o) {
  const AttentionCall call = attention_call(tokens.q, k_cache, spans, args);
  bool chunked = args.scale > 0.0F;
  for (const Tensor* tensor : {&tokens.q, &tokens.k, &tokens.v, &k_cache, &v_cache, &o}) {
    chunked = chunked && in_chunks(*tensor);
  }
  const auto R = static_cast<int>(tokens.rope_table.columns());
  const int heads = call.H / call.G;
  if (context.compute_capability < 90 || !chunked || call.Tq != 1 || call.Tk > kMostKeys ||
      call.D % 8 != 0 || call.D > 128 || heads > kQueries || R % 16 != 0 ||
      !in_runs(R, {tokens.rope_table.address()})) {
    return false;
  }
  const Args all{call,
                 tokens.q.data<__nv_bfloat16>(),
                 k_cache.data<__nv_bfloat16>(),
                 v_cache.data<__nv_bfloat16>(),
                 o.data<__nv_bfloat16>(),
                 {tokens.positions.data<int32_t>(), tokens.rope_table.data<float>(), R,
                  tokens.k.data<__nv_bfloat16>(), tokens.v.data<__nv_bfloat16>(),
                  k_cache.data<__nv_bfloat16>(), v_cache.data<__nv_bfloat16>()}};
  if (call.D <= 64) {
    heads <= 8 ? launch<64, 8>(context, all) : launch<64, 16>(context, all);
  } else {
    heads <= 8 ? launch<128, 8>(context, all) : launch<128, 16>(context, all);
  }
  return true;
}

}  // namespace wick::cuda
