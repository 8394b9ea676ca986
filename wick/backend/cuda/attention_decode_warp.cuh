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

// The keys and values that a warp takes at a step, all read before the first is used.
template <int kD>
struct DecodeStep {
  uint4 keys[kD / 32][2];
  uint4 values[kD / 64][4];

  // Keys [from, from + 16), of which those from `end` on are zero, and `skipped` too.
  __device__ __forceinline__ void read(const __nv_bfloat16* k, const __nv_bfloat16* v,
                                       int64_t row_elements, int from, int end, int skipped,
                                       int chunks) {
    for_each_chunk(
        from,
        [&](int key, int chunk, uint4& of_key) {
          of_key = read_chunk(k + key * row_elements, chunk,
                              key < end && key != skipped && chunk < chunks);
        },
        [&](int key, int chunk, uint4& of_key) {
          of_key = read_chunk(v + key * row_elements, chunk,
                              key < end && key != skipped && chunk < chunks);
        });
  }

  // Puts the row of the key `fresh` in, where it is among those from `from` on.
  __device__ __forceinline__ void insert(const __nv_bfloat16* k, const __nv_bfloat16* v, int from,
                                         int fresh, int chunks) {
    if (fresh < from || fresh >= from + kKeysOfWarp) {
      return;
    }
    const auto put = [&](const __nv_bfloat16* row, int key, int chunk, uint4& of_key) {
      if (key == fresh && chunk < chunks) {
        of_key = read_chunk(row, chunk, true);
      }
    };
    for_each_chunk(
        from, [&](int key, int chunk, uint4& of_key) { put(k, key, chunk, of_key); },
        [&](int key, int chunk, uint4& of_key) { put(v, key, chunk, of_key); });
  }

 private:
  template <class OfKey, class OfValue>
  __device__ __forceinline__ void for_each_chunk(int from, const OfKey& of_key,
                                                 const OfValue& of_value) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < kD / 32; ++i) {
        of_key(from + n * 8 + lane / 4, lane % 4 + 4 * i, keys[i][n]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < kD / 64; ++i) {
        of_value(from + n / 2 * 8 + 2 * (lane % 4) + n % 2, lane / 4 + 8 * i, values[i][n]);
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

}  // namespace wick::cuda
