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
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

namespace {

constexpr int kPartWarps = 4;
constexpr int kWholeWarps = 16;  // of a block that takes all keys, which are few
constexpr int kThreads = 32 * kPartWarps;
constexpr int kQueries = 16;     // a block's (row, head) pairs
constexpr int kKeysOfWarp = 16;  // a step's
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

__device__ __forceinline__ uint4 read_chunk(const __nv_bfloat16* row, int chunk, bool valid) {
  return valid ? *reinterpret_cast<const uint4*>(row + chunk * 8) : uint4{0, 0, 0, 0};
}

// Element j (0..7) of two chunks as a pair.
template <int j>
__device__ __forceinline__ uint32_t pair_of(const uint4& low, const uint4& high) {
  const uint32_t a = j / 2 == 0 ? low.x : j / 2 == 1 ? low.y : j / 2 == 2 ? low.z : low.w;
  const uint32_t b = j / 2 == 0 ? high.x : j / 2 == 1 ? high.y : j / 2 == 2 ? high.z : high.w;
  return __byte_perm(a, b, j % 2 == 0 ? 0x5410 : 0x7632);
}

// The keys and values that a warp takes at a step, all read before the first is used.
template <int kD>
struct DecodeStep {
  uint4 keys[kD / 32][2];
  uint4 values[kD / 64][4];

  // Keys [from, from + 16), of which those from `end` on are zero.
  __device__ __forceinline__ void read(const __nv_bfloat16* k, const __nv_bfloat16* v,
                                       int64_t row_elements, int from, int end, int chunks) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = from + n * 8 + lane / 4;
#pragma unroll
      for (int i = 0; i < kD / 32; ++i) {
        const int chunk = lane % 4 + 4 * i;
        keys[i][n] = read_chunk(k + key * row_elements, chunk, key < end && chunk < chunks);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int key = from + n / 2 * 8 + 2 * (lane % 4) + n % 2;
#pragma unroll
      for (int i = 0; i < kD / 64; ++i) {
        const int chunk = lane / 4 + 8 * i;
        values[i][n] = read_chunk(v + key * row_elements, chunk, key < end && chunk < chunks);
      }
    }
  }
};

// A warp's queries (left operand), running softmax and sums. Lane l has queries l/4 and l/4 + 8.
// Step s of the inner index takes words 2 (s%2) and 2 (s%2) + 1 of chunk l%4 + 4 (s/2) of queries
// and keys; o[i][j] holds element j of the chunks 2 (l%4) + 8 i and the next.
template <int kD>
struct DecodeWarp {
  uint4 q[kD / 32][2];
  float o[kD / 64][8][4];
  float largest[2];
  float sum[2];

  __device__ __forceinline__ void start() {
    largest[0] = largest[1] = -INFINITY;
    sum[0] = sum[1] = 0.0F;
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        o[i][j][0] = o[i][j][1] = o[i][j][2] = o[i][j][3] = 0.0F;
      }
    }
  }

  // Scores of 16 keys.
  __device__ __forceinline__ void score(const uint4 (&k)[kD / 32][2], float (&s)[2][4]) const {
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const uint32_t first[4] = {q[i][0].x, q[i][1].x, q[i][0].y, q[i][1].y};
      const uint32_t second[4] = {q[i][0].z, q[i][1].z, q[i][0].w, q[i][1].w};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add(first, k[i][n].x, k[i][n].y, s[n]);
        multiply_add(second, k[i][n].z, k[i][n].w, s[n]);
      }
    }
  }

  // Masked scores become probabilities; sums follow the largest.
  __device__ __forceinline__ void soften(float scale2, float (&s)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = fmaxf(fmaxf(s[0][2 * half], s[0][2 * half + 1]),
                        fmaxf(s[1][2 * half], s[1][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0U, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0U, top, 2));
      top = fmaxf(top * scale2, largest[half]);
      const float shift = top == -INFINITY ? 0.0F : top;
      const float factor = fast_exp2(largest[half] - shift);
      largest[half] = top;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          s[n][c] = fast_exp2(s[n][c] * scale2 - shift);
          sum[half] += s[n][c];
        }
      }
#pragma unroll
      for (int i = 0; i < kD / 64; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          o[i][j][2 * half] *= factor;
          o[i][j][2 * half + 1] *= factor;
        }
      }
    }
  }

  template <int j>
  __device__ __forceinline__ void add_element(const uint32_t (&p)[4],
                                              const uint4 (&v)[kD / 64][4]) {
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
      multiply_add(p, pair_of<j>(v[i][0], v[i][1]), pair_of<j>(v[i][2], v[i][3]), o[i][j]);
    }
  }

  __device__ __forceinline__ void add_values(const float (&s)[2][4], const uint4 (&v)[kD / 64][4]) {
    const uint32_t p[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                           pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
    add_element<0>(p, v);
    add_element<1>(p, v);
    add_element<2>(p, v);
    add_element<3>(p, v);
    add_element<4>(p, v);
    add_element<5>(p, v);
    add_element<6>(p, v);
    add_element<7>(p, v);
  }

  // This lane's sums, into [kQueries][kD].
  __device__ __forceinline__ void put(float* to) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float* row = to + (lane / 4 + c / 2 * 8) * kD + (2 * (lane % 4) + c % 2 + 8 * i) * 8;
        reinterpret_cast<float4*>(row)[0] = {o[i][0][c], o[i][1][c], o[i][2][c], o[i][3][c]};
        reinterpret_cast<float4*>(row)[1] = {o[i][4][c], o[i][5][c], o[i][6][c], o[i][7][c]};
      }
    }
  }
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
  const int64_t k_row = static_cast<int64_t>(call.G) * call.D;
  const __nv_bfloat16* k = tensors.k + static_cast<int64_t>(g) * call.D;
  const __nv_bfloat16* v = tensors.v + static_cast<int64_t>(g) * call.D;
  for (int from = bounds.begin + warp * kKeysOfWarp; from < bounds.end;
       from += kWarps * kKeysOfWarp) {
    DecodeStep<kD> step;
    step.read(k, v, k_row, from, bounds.end, chunks);
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
  allow_shared(decode_part<kD, kWarps>, kBytes);
  launch_early(context, true, decode_part<kD, kWarps>, grid, 32 * kWarps, kBytes, call, tensors);
  check_launch("attention of few queries");
}

template <int kD>
void launch_decode(const Context& context, const AttentionCall& call,
                   const DecodeTensors& tensors) {
  if (tensors.parts == 1) {
    launch_parts<kD, kD <= 64    ? kWholeWarps
                     : kD <= 128 ? kWholeWarps / 2
                                 : kPartWarps>(context, call, tensors);
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
