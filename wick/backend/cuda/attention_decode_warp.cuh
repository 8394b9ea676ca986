// Attention of few queries: what a warp reads of the keys and values, and how it multiplies them.
#pragma once

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/fast_exp.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kQueries = 16;     // a block's (row, head) pairs
constexpr int kKeysOfWarp = 16;  // a step's

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

// The keys and values that a warp takes at a step, all read before the first is used: of values
// kValues channels from chunk `first_chunk` on.
template <int kD, int kValues = kD>
struct DecodeStep {
  uint4 keys[kD / 32][2];
  uint4 values[kValues / 64][4];
  int first_chunk = 0;

  // Keys [from, from + 16), of which those from `end` on are zero, and `skipped` too; and their
  // values. Offset: a type that an element's place in the cache fits into.
  template <class Offset>
  __device__ __forceinline__ void read_keys(const __nv_bfloat16* k, Offset row_elements, int from,
                                            int end, int skipped, int chunks, int lane) {
    for_each_chunk_of_keys(from, lane, [&](int key, int chunk, uint4& of_key) {
      of_key =
          read_chunk(k + key * row_elements, chunk, key < end && key != skipped && chunk < chunks);
    });
  }
  template <class Offset>
  __device__ __forceinline__ void read_values(const __nv_bfloat16* v, Offset row_elements, int from,
                                              int end, int skipped, int chunks) {
    for_each_chunk_of_values(from, [&](int key, int chunk, uint4& of_key) {
      of_key =
          read_chunk(v + key * row_elements, chunk, key < end && key != skipped && chunk < chunks);
    });
  }
  __device__ __forceinline__ void read(const __nv_bfloat16* k, const __nv_bfloat16* v,
                                       int64_t row_elements, int from, int end, int skipped,
                                       int chunks) {
    read_keys(k, row_elements, from, end, skipped, chunks, static_cast<int>(threadIdx.x % 32));
    read_values(v, row_elements, from, end, skipped, chunks);
  }

  // Puts the row of the key `fresh` in, where it is among those from `from` on; it lies in shared
  // memory.
  __device__ __forceinline__ void insert_key(uint32_t row, int from, int fresh, int chunks,
                                             int lane) {
    if (fresh >= from && fresh < from + kKeysOfWarp) {
      for_each_chunk_of_keys(from, lane, [&](int key, int chunk, uint4& of_key) {
        if (key == fresh && chunk < chunks) {
          of_key = read_shared(row + chunk * 16);
        }
      });
    }
  }

 private:
  template <class OfKey>
  __device__ __forceinline__ void for_each_chunk_of_keys(int from, int lane, const OfKey& of_key) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < kD / 32; ++i) {
        of_key(from + n * 8 + lane / 4, lane % 4 + 4 * i, keys[i][n]);
      }
    }
  }
  template <class OfValue>
  __device__ __forceinline__ void for_each_chunk_of_values(int from, const OfValue& of_value) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < kValues / 64; ++i) {
        of_value(from + n / 2 * 8 + 2 * (lane % 4) + n % 2, first_chunk + lane / 4 + 8 * i,
                 values[i][n]);
      }
    }
  }
};

// A warp's queries (left operand), running softmax and sums. Lane l has queries l/4 and l/4 + 8, or
// only the first where there are no more than eight (kHalves is 1): then half of the registers do.
// Step s of the inner index takes words 2 (s%2) and 2 (s%2) + 1 of chunk l%4 + 4 (s/2) of queries
// and keys; o[i][j] holds element j of the chunks 2 (l%4) + 8 i and the next.
template <int kD, int kValues = kD, int kHalves = 2>
struct DecodeWarp {
  using Scores = float[2][2 * kHalves];  // of 16 keys

  uint4 q[kD / 32][2];
  float o[kValues / 64][8][2 * kHalves];
  float largest[kHalves];
  float sum[kHalves];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      largest[half] = -INFINITY;
      sum[half] = 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kValues / 64; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2 * kHalves; ++c) {
          o[i][j][c] = 0.0F;
        }
      }
    }
  }

  // query(i, half): the lane's chunk i of a query.
  template <class Query>
  __device__ __forceinline__ static void score(const Query& query, const uint4 (&k)[kD / 32][2],
                                               Scores& s) {
#pragma unroll
    for (int i = 0; i < kD / 32; ++i) {
      const uint4 low = query(i, 0);
      const uint4 high = kHalves == 2 ? query(i, 1) : uint4{0, 0, 0, 0};
      const uint32_t first[4] = {low.x, high.x, low.y, high.y};
      const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_halves(first, k[i][n].x, k[i][n].y, s[n]);
        multiply_halves(second, k[i][n].z, k[i][n].w, s[n]);
      }
    }
  }

  __device__ __forceinline__ void score(const uint4 (&k)[kD / 32][2], Scores& s) const {
    score([this](int i, int half) { return q[i][half]; }, k, s);
  }

  // Masked scores become probabilities; sums follow the largest.
  __device__ __forceinline__ void soften(float scale2, Scores& s) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
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
      for (int i = 0; i < kValues / 64; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          o[i][j][2 * half] *= factor;
          o[i][j][2 * half + 1] *= factor;
        }
      }
    }
  }

  __device__ __forceinline__ void add_values(const Scores& s, const uint4 (&v)[kValues / 64][4]) {
    uint32_t p[4] = {};
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      p[half] = pack_bf16(s[0][2 * half], s[0][2 * half + 1]);
      p[half + 2] = pack_bf16(s[1][2 * half], s[1][2 * half + 1]);
    }
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
    static_assert(kHalves == 2);
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

 private:
  __device__ __forceinline__ static void multiply_halves(const uint32_t (&a)[4], uint32_t b0,
                                                         uint32_t b1, float (&sums)[2 * kHalves]) {
    float all[4] = {};
#pragma unroll
    for (int c = 0; c < 2 * kHalves; ++c) {
      all[c] = sums[c];
    }
    multiply_add(a, b0, b1, all);
#pragma unroll
    for (int c = 0; c < 2 * kHalves; ++c) {
      sums[c] = all[c];
    }
  }

  template <int j>
  __device__ __forceinline__ void add_element(const uint32_t (&p)[4],
                                              const uint4 (&v)[kValues / 64][4]) {
#pragma unroll
    for (int i = 0; i < kValues / 64; ++i) {
      multiply_halves(p, pair_of<j>(v[i][0], v[i][1]), pair_of<j>(v[i][2], v[i][3]), o[i][j]);
    }
  }
};

}  // namespace wick::cuda
