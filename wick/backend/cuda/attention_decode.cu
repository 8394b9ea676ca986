// Attention of few queries over many keys: the keys are cut into parts, each a block, and a second
// kernel brings the parts together (Flash-Decoding; Dao, Haziza, Massa, Sizov, 2023). Up to 1024
// keys are one part, of more warps: a second launch costs more than they do.
//
// The grid follows from the capacity of the cache, not from how much of it is used: blocks of parts
// that no query sees end at once, so one recorded graph serves a growing cache. All query heads of
// a key head and up to 16 such queries share the reads of keys and values, which go from memory
// straight into the fragments of mma.m16n8k16: a product does not mind the order of its inner
// index, nor a row of results the order of its columns, so both orders are chosen to make every
// read 16 bytes of one row.
//
// Bound by the bytes of the keys and values seen; for short ones by launches and dependent reads.
// Memory: parts Tq H (4 D + 8) bytes.
#include <algorithm>

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/rope.cuh"

namespace wick::cuda {

namespace {

constexpr int kPartWarps = 4;
constexpr int kWholeWarps = 16;  // of a block that takes all keys, which are few
constexpr int kThreads = 32 * kPartWarps;
constexpr int kKeysOfPart = kPartWarps * kKeysOfWarp;
constexpr int kMostParts = 128;
constexpr int kMostKeysOfHalf = 512;  // that half of those warps take as fast
constexpr int kMostWholeKeys = 1024;  // beyond, more blocks read faster than one

struct DecodeTensors {
  const __nv_bfloat16 *q, *k, *v;
  __nv_bfloat16* o;
  float* lse;  // null: not wanted
  int part_keys, parts;
  float* part_o;       // [parts,Tq,H,D]: sums of p v, p relative to the part's largest score
  float2* part_stats;  // [parts,Tq,H]: that score (times scale log2 e), and the sum of p
};

// The one token of a call that appends it: q is still to be turned, k and v are not in the cache.
struct AppendedToken {
  const int* positions;
  const float* table;  // [P,R]
  int R;
  const __nv_bfloat16 *k, *v;  // [G,D]
  __nv_bfloat16 *k_cache, *v_cache;
};

// What the warps of a block leave of its part.
template <int kD, int kWarps>
struct DecodeShared {
  float o[kWarps][kQueries][kD];
  float largest[kWarps][kQueries];
  float sum[kWarps][kQueries];
  VisibleKeys keys[kQueries];
  __nv_bfloat16 q[kQueries][kD];  // turned, where that is done here
  __nv_bfloat16 fresh[2][kD];     // the key, turned, and the value that come with them
};

// A warp's sums, for write_part.
template <int kD, int kWarps>
__device__ __forceinline__ void leave(const DecodeWarp<kD>& mine, int warp,
                                      DecodeShared<kD, kWarps>& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = mine.sum[half];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    if (lane % 4 == 0) {
      shared.largest[warp][lane / 4 + 8 * half] = mine.largest[half];
      shared.sum[warp][lane / 4 + 8 * half] = sum;
    }
  }
  mine.put(&shared.o[warp][0][0]);
}

// Query `u` of key head g: head u % (H/G) of row u / (H/G); as an index into [Tq,H].
__device__ __forceinline__ int64_t row_head(const AttentionCall& call, int g, int u) {
  const int heads = call.H / call.G;
  return static_cast<int64_t>(u / heads) * call.H + g * heads + u % heads;
}

// Brings the warps together and writes the part, or the result where there is one part only.
template <int kD, int kWarps>
__device__ __forceinline__ void write_part(const AttentionCall& call, const DecodeTensors& tensors,
                                           const DecodeShared<kD, kWarps>& shared, int part, int g,
                                           int first, int count) {
  for (int at = static_cast<int>(threadIdx.x); at < count * kD; at += 32 * kWarps) {
    const int query = at / kD;
    const int i = at % kD;
    if (i >= call.D || (tensors.parts > 1 && shared.keys[query].empty())) {
      continue;
    }
    float largest = shared.largest[0][query];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      largest = fmaxf(largest, shared.largest[w][query]);
    }
    const float shift = largest == -INFINITY ? 0.0F : largest;
    float sum = 0.0F;
    float o = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = fast_exp2(shared.largest[w][query] - shift);
      sum += factor * shared.sum[w][query];
      o += factor * shared.o[w][query][i];
    }
    const int64_t to = row_head(call, g, first + query);
    if (tensors.parts > 1) {
      const int64_t to_part = static_cast<int64_t>(part) * call.Tq * call.H + to;
      tensors.part_o[to_part * call.D + i] = o;
      if (i == 0) {
        tensors.part_stats[to_part] = {largest, sum};
      }
      continue;
    }
    tensors.o[to * call.D + i] = __float2bfloat16_rn(sum == 0.0F ? 0.0F : o / sum);
    if (i == 0 && tensors.lse != nullptr) {
      tensors.lse[to] = sum == 0.0F ? -INFINITY : (largest + log2f(sum)) * kLn2;
    }
  }
}

// Asks for the cache's rows that are seen to come to the L2. They are not read before what is
// ahead in the stream is done, which may have written them.
__device__ __forceinline__ void prefetch_keys(const AttentionCall& call,
                                              const DecodeTensors& tensors, int g,
                                              const VisibleKeys& keys) {
  const int lines = (call.D + 63) / 64;  // of a row, 128 bytes each
  const int64_t row = static_cast<int64_t>(call.G) * call.D;
  for (int i = static_cast<int>(threadIdx.x); i < (keys.end - keys.begin) * lines;
       i += static_cast<int>(blockDim.x)) {
    const int64_t at = (keys.begin + i / lines) * row + g * call.D + i % lines * 64;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(tensors.k + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(tensors.v + at));
  }
}

// Turns the token's queries and key of key head g into shared memory, where its value goes too.
template <int kD, int kWarps>
__device__ __forceinline__ void turn_token(const AttentionCall& call, const DecodeTensors& tensors,
                                           const AppendedToken& token, int g, const float* angles,
                                           DecodeShared<kD, kWarps>& shared) {
  const HeadShape shape{call.D, token.R};
  const int runs = shape.runs<8>();
  const int heads = call.H / call.G;
  const int work = (heads + 1) * runs + call.D / 8;
  for (int at = static_cast<int>(threadIdx.x); at < work; at += 32 * kWarps) {
    const int head = at / runs;
    if (head < heads) {
      rotate_run<8>(tensors.q + (static_cast<int64_t>(g) * heads + head) * call.D, angles, 1.0F,
                    shape, at % runs, shared.q[head]);
    } else if (head == heads) {
      rotate_run<8>(token.k + static_cast<int64_t>(g) * call.D, angles, 1.0F, shape, at % runs,
                    shared.fresh[0]);
    } else {
      const int chunk = at - (heads + 1) * runs;
      reinterpret_cast<uint4*>(shared.fresh[1])[chunk] =
          read_chunk(token.v + static_cast<int64_t>(g) * call.D, chunk, true);
    }
  }
}

// Puts the token's key and value into the cache.
template <int kD, int kWarps>
__device__ __forceinline__ void append_token(const AttentionCall& call, const AppendedToken& token,
                                             int g, int position,
                                             const DecodeShared<kD, kWarps>& shared) {
  const int chunks = call.D / 8;
  for (int at = static_cast<int>(threadIdx.x); at < 2 * chunks; at += 32 * kWarps) {
    const bool is_key = at < chunks;
    const int chunk = is_key ? at : at - chunks;
    __nv_bfloat16* cache = (is_key ? token.k_cache : token.v_cache) +
                           (static_cast<int64_t>(position) * call.G + g) * call.D;
    reinterpret_cast<uint4*>(cache)[chunk] = read_chunk(shared.fresh[is_key ? 0 : 1], chunk, true);
  }
}

// Grid: parts, G, groups of 16 queries.
template <int kD, int kWarps, bool kAppends>
__global__ void __launch_bounds__(32 * kWarps)
    decode_part(const AttentionCall call, const DecodeTensors tensors, const AppendedToken token) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<DecodeShared<kD, kWarps>*>(memory);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int part = static_cast<int>(blockIdx.x);
  const int g = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.z) * kQueries;
  const int heads = call.H / call.G;
  const int count = min(call.Tq * heads - first, kQueries);
  const int chunks = call.D / 8;

  let_next_start();
  if (threadIdx.x < kQueries) {
    VisibleKeys keys{0, 0};
    if (static_cast<int>(threadIdx.x) < count) {
      keys = visible_keys(call, (first + static_cast<int>(threadIdx.x)) / heads);
      keys.begin = max(keys.begin, part * tensors.part_keys);
      keys.end = min(keys.end, (part + 1) * tensors.part_keys);
    }
    shared.keys[threadIdx.x] = keys.empty() ? VisibleKeys{0, 0} : keys;
  }
  const int64_t k_row = static_cast<int64_t>(call.G) * call.D;
  const __nv_bfloat16* k = tensors.k + static_cast<int64_t>(g) * call.D;
  const __nv_bfloat16* v = tensors.v + static_cast<int64_t>(g) * call.D;
  DecodeStep<kD> step;
  int position = -1;
  if constexpr (kAppends) {
    // All that does not come from the launch before is asked for now, but what is in the cache is
    // only read after it.
    position = token.positions[0];
    const float* angles = token.table + static_cast<int64_t>(position) * token.R;
    if (static_cast<int>(threadIdx.x) < (token.R + 31) / 32) {
      float first;
      asm volatile("ld.global.ca.f32 %0, [%1];" : "=f"(first) : "l"(angles + 32 * threadIdx.x));
    }
    __syncthreads();
    const VisibleKeys keys = shared.keys[0];
    prefetch_keys(call, tensors, g, keys);
    wait_for_previous();
    const int from = keys.begin + warp * kKeysOfWarp;
    if (from < keys.end) {
      step.read(k, v, k_row, from, keys.end, position, chunks);
    }
    turn_token(call, tensors, token, g, angles, shared);
    __syncthreads();
    if (position >= part * tensors.part_keys && position < (part + 1) * tensors.part_keys) {
      append_token(call, token, g, position, shared);
    }
  } else {
    wait_for_previous();
  }
  DecodeWarp<kD> mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = lane / 4 + 8 * half;
    const __nv_bfloat16* row =
        kAppends ? shared.q[min(query, count - 1)]
                 : tensors.q + row_head(call, g, first + min(query, count - 1)) * call.D;
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const int chunk = lane % 4 + 4 * i;
      mine.q[i][half] = read_chunk(row, chunk, query < count && chunk < chunks);
    }
  }
  if constexpr (!kAppends) {
    __syncthreads();
  }
  const KeyBounds bounds = key_bounds(shared.keys, kQueries);
  if (bounds.begin >= bounds.end && tensors.parts > 1) {
    return;
  }
  const VisibleKeys seen[2] = {shared.keys[lane / 4], shared.keys[lane / 4 + 8]};

  mine.start();
  const float scale2 = call.scale * kLog2E;
  const int first_from = bounds.begin + warp * kKeysOfWarp;
  for (int from = first_from; from < bounds.end; from += kWarps * kKeysOfWarp) {
    if (!kAppends || from > first_from) {
      step.read(k, v, k_row, from, bounds.end, position, chunks);
    }
    if constexpr (kAppends) {
      step.insert(shared.fresh[0], shared.fresh[1], from, position, chunks);
    }
    float s[2][4] = {};
    mine.score(step.keys, s);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int key = from + n * 8 + 2 * (lane % 4) + c % 2;
        s[n][c] = seen[c / 2].has(key) ? s[n][c] : -INFINITY;
      }
    }
    mine.soften(scale2, s);
    mine.add_values(s, step.values);
  }

  leave(mine, warp, shared);
  __syncthreads();
  write_part(call, tensors, shared, part, g, first, count);
}

// Grid: Tq H. A thread adds up four channels of every kGroups-th part.
template <int kD>
__global__ void __launch_bounds__(kThreads)
    combine_parts(const AttentionCall call, const DecodeTensors tensors) {
  constexpr int kLanes = kD / 4;
  constexpr int kGroups = kThreads / kLanes;
  __shared__ float factors[kMostParts];
  __shared__ float4 sums[kGroups][kLanes];
  __shared__ float largest_of_warp[kPartWarps];
  __shared__ float sum_of_warp[kPartWarps];
  const int at = static_cast<int>(blockIdx.x);  // of [Tq,H]
  const int64_t stride = static_cast<int64_t>(call.Tq) * call.H;
  let_next_start();
  const VisibleKeys keys = visible_keys(call, at / call.H);
  wait_for_previous();
  const int first = keys.begin / tensors.part_keys;
  const int parts = keys.empty() ? 0 : (keys.end - 1) / tensors.part_keys + 1 - first;
  const int thread = static_cast<int>(threadIdx.x);

  float2 stats = {-INFINITY, 0.0F};
  if (thread < parts) {  // at most kMostParts, which is kThreads
    stats = tensors.part_stats[(first + thread) * stride + at];
  }
  float largest = stats.x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, step));
  }
  if (thread % 32 == 0) {
    largest_of_warp[thread / 32] = largest;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kPartWarps; ++w) {
    largest = fmaxf(largest, largest_of_warp[w]);
  }
  const float factor = fast_exp2(stats.x - (largest == -INFINITY ? 0.0F : largest));
  factors[thread] = factor;
  float sum = factor * stats.y;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    sum += __shfl_xor_sync(~0U, sum, step);
  }
  if (thread % 32 == 0) {
    sum_of_warp[thread / 32] = sum;
  }
  __syncthreads();
  sum = 0.0F;
#pragma unroll
  for (int w = 0; w < kPartWarps; ++w) {
    sum += sum_of_warp[w];
  }

  const int i = thread % kLanes * 4;
  float4 o = {0.0F, 0.0F, 0.0F, 0.0F};
  if (i < call.D) {
    const float* from = tensors.part_o + (first * stride + at) * call.D + i;
#pragma unroll 4
    for (int part = thread / kLanes; part < parts; part += kGroups) {
      const auto add = *reinterpret_cast<const float4*>(from + part * stride * call.D);
      const float f = factors[part];
      o = {o.x + f * add.x, o.y + f * add.y, o.z + f * add.z, o.w + f * add.w};
    }
  }
  sums[thread / kLanes][thread % kLanes] = o;
  __syncthreads();
  if (thread >= kLanes || i >= call.D) {
    return;
  }
  for (int group = 1; group < kGroups; ++group) {
    const float4 add = sums[group][thread];
    o = {o.x + add.x, o.y + add.y, o.z + add.z, o.w + add.w};
  }
  const float inverse = sum == 0.0F ? 0.0F : 1.0F / sum;
  *reinterpret_cast<uint2*>(tensors.o + static_cast<int64_t>(at) * call.D + i) = {
      pack_bf16(o.x * inverse, o.y * inverse), pack_bf16(o.z * inverse, o.w * inverse)};
  if (thread == 0 && tensors.lse != nullptr) {
    tensors.lse[at] = sum == 0.0F ? -INFINITY : (largest + log2f(sum)) * kLn2;
  }
}

template <int kD, int kWarps, bool kAppends>
void launch_parts(const Context& context, const AttentionCall& call, const DecodeTensors& tensors,
                  const AppendedToken& token) {
  const int groups = divide_up(static_cast<int64_t>(call.Tq) * (call.H / call.G), kQueries);
  const dim3 grid(tensors.parts, call.G, groups);
  constexpr int kBytes = sizeof(DecodeShared<kD, kWarps>);
  const auto kernel = decode_part<kD, kWarps, kAppends>;
  allow_shared(kernel, kBytes);
  // As the launches around it have it (linears_row.cu).
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "attention: shared memory");
  launch_early(context, true, kernel, grid, 32 * kWarps, kBytes, call, tensors, token);
  check_launch("attention of few queries");
}

template <int kD, bool kAppends>
void launch_decode(const Context& context, const AttentionCall& call, const DecodeTensors& tensors,
                   const AppendedToken& token) {
  constexpr int kWarps = kD <= 64 ? kWholeWarps : kD <= 128 ? kWholeWarps / 2 : kPartWarps;
  // Fewer warps find a place beside the launch before.
  if (kAppends && kD <= 64 && tensors.parts == 1 && call.Tk <= kMostKeysOfHalf) {
    launch_parts<kD, kWarps / 2, kAppends>(context, call, tensors, token);
    return;
  }
  if (tensors.parts == 1) {
    launch_parts<kD, kWarps, kAppends>(context, call, tensors, token);
    return;
  }
  launch_parts<kD, kPartWarps, kAppends>(context, call, tensors, token);
  launch_early(context, true, combine_parts<kD>, call.Tq * call.H, kThreads, 0, call, tensors);
  check_launch("attention of few queries, parts");
}

template <bool kAppends>
void decode(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
            const AttentionCall& call, const AppendedToken& token, const Tensor& o,
            const Tensor& lse) {
  const int steps = divide_up(divide_up(call.Tk, kMostParts), kKeysOfPart);
  const int part_keys = call.D <= 128 && call.Tk <= kMostWholeKeys
                            ? kMostWholeKeys
                            : std::max(steps, 1) * kKeysOfPart;
  const int parts = std::max(divide_up(call.Tk, part_keys), 1);
  const size_t rows = parts > 1 ? static_cast<size_t>(parts) * call.Tq * call.H : 0;
  const Scratch scratch(context, rows * (call.D * sizeof(float) + sizeof(float2)));
  const DecodeTensors tensors{q.data<__nv_bfloat16>(),
                              k.data<__nv_bfloat16>(),
                              v.data<__nv_bfloat16>(),
                              o.data<__nv_bfloat16>(),
                              lse ? lse.data<float>() : nullptr,
                              part_keys,
                              parts,
                              scratch.as<float>(),
                              reinterpret_cast<float2*>(scratch.as<float>() + rows * call.D)};
  if (call.D <= 64) {
    launch_decode<64, kAppends>(context, call, tensors, token);
  } else if (call.D <= 128) {
    launch_decode<128, kAppends>(context, call, tensors, token);
  } else {
    launch_decode<256, kAppends>(context, call, tensors, token);
  }
}

}  // namespace

void attention_decode(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                      const AttentionCall& call, const Tensor& o, const Tensor& lse) {
  decode<false>(context, q, k, v, call, {}, o, lse);
}

bool append_attention(const Context& context, const FreshTokens& tokens, const Tensor& k_cache,
                      const Tensor& v_cache, const Tensor& spans, const AttentionArgs& args,
                      const Tensor& o) {
  const AttentionCall call = attention_call(tokens.q, k_cache, spans, args);
  bool chunked = args.scale > 0.0F;
  for (const Tensor* tensor : {&tokens.q, &tokens.k, &tokens.v, &k_cache, &v_cache, &o}) {
    chunked = chunked && in_chunks(*tensor);
  }
  const auto R = static_cast<int>(tokens.rope_table.columns());
  if (!chunked || call.Tq != 1 || call.D % 8 != 0 || call.D > 256 || call.H / call.G > kQueries ||
      R % 16 != 0 || !in_runs(R, {tokens.rope_table.address()})) {
    return false;
  }
  decode<true>(context, tokens.q, k_cache, v_cache, call,
               {tokens.positions.data<int32_t>(), tokens.rope_table.data<float>(), R,
                tokens.k.data<__nv_bfloat16>(), tokens.v.data<__nv_bfloat16>(),
                k_cache.data<__nv_bfloat16>(), v_cache.data<__nv_bfloat16>()},
               o, Tensor());
  return true;
}

}  // namespace wick::cuda
