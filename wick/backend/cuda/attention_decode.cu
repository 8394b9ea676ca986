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

namespace wick::cuda {

namespace {

constexpr int kPartWarps = 4;
constexpr int kWholeWarps = 16;  // of a block that takes all keys, which are few
constexpr int kThreads = 32 * kPartWarps;
constexpr int kKeysOfPart = kPartWarps * kKeysOfWarp;
constexpr int kMostParts = 128;
constexpr int kMostWholeKeys = 1024;  // beyond, more blocks read faster than one

struct DecodeTensors {
  const __nv_bfloat16 *q, *k, *v;
  __nv_bfloat16* o;
  float* lse;  // null: not wanted
  int part_keys, parts;
  float* part_o;       // [parts,Tq,H,D]: sums of p v, p relative to the part's largest score
  float2* part_stats;  // [parts,Tq,H]: that score (times scale log2 e), and the sum of p
};

// What the warps of a block leave of its part.
template <int kD, int kWarps>
struct DecodeShared {
  float o[kWarps][kQueries][kD];
  float largest[kWarps][kQueries];
  float sum[kWarps][kQueries];
  VisibleKeys keys[kQueries];
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

// Grid: parts, G, groups of 16 queries.
template <int kD, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    decode_part(const AttentionCall call, const DecodeTensors tensors) {
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
  wait_for_previous();
  DecodeWarp<kD> mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = lane / 4 + 8 * half;
    const __nv_bfloat16* row =
        tensors.q + row_head(call, g, first + min(query, count - 1)) * call.D;
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const int chunk = lane % 4 + 4 * i;
      mine.q[i][half] = read_chunk(row, chunk, query < count && chunk < chunks);
    }
  }
  __syncthreads();
  const KeyBounds bounds = key_bounds(shared.keys, kQueries);
  if (bounds.begin >= bounds.end && tensors.parts > 1) {
    return;
  }
  const VisibleKeys seen[2] = {shared.keys[lane / 4], shared.keys[lane / 4 + 8]};

  mine.start();
  const float scale2 = call.scale * kLog2E;
  for (int from = bounds.begin + warp * kKeysOfWarp; from < bounds.end;
       from += kWarps * kKeysOfWarp) {
    DecodeStep<kD> step;
    step.read(k, v, k_row, from, bounds.end, -1, chunks);
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

template <int kD, int kWarps>
void launch_parts(const Context& context, const AttentionCall& call, const DecodeTensors& tensors) {
  const int groups = divide_up(static_cast<int64_t>(call.Tq) * (call.H / call.G), kQueries);
  const dim3 grid(tensors.parts, call.G, groups);
  constexpr int kBytes = sizeof(DecodeShared<kD, kWarps>);
  const auto kernel = decode_part<kD, kWarps>;
  allow_shared(kernel, kBytes);
  // As the launches around it have it (linears_row.cu).
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "attention: shared memory");
  launch_early(context, true, kernel, grid, 32 * kWarps, kBytes, call, tensors);
  check_launch("attention of few queries");
}

template <int kD>
void launch_decode(const Context& context, const AttentionCall& call,
                   const DecodeTensors& tensors) {
  constexpr int kWarps = kD <= 64 ? kWholeWarps : kD <= 128 ? kWholeWarps / 2 : kPartWarps;
  if (tensors.parts == 1) {
    launch_parts<kD, kWarps>(context, call, tensors);
    return;
  }
  launch_parts<kD, kPartWarps>(context, call, tensors);
  launch_early(context, true, combine_parts<kD>, call.Tq * call.H, kThreads, 0, call, tensors);
  check_launch("attention of few queries, parts");
}

}  // namespace

void attention_decode(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                      const AttentionCall& call, const Tensor& o, const Tensor& lse) {
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
    launch_decode<64>(context, call, tensors);
  } else if (call.D <= 128) {
    launch_decode<128>(context, call, tensors);
  } else {
    launch_decode<256>(context, call, tensors);
  }
}

}  // namespace wick::cuda
