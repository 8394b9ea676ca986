// The inner loops of dense products: packing and tiles.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_MATMUL_INL_H_
#undef WICK_BACKEND_CPU_MATMUL_INL_H_
#else
#define WICK_BACKEND_CPU_MATMUL_INL_H_
#endif
// clang-format on

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_MATMUL_SHARED_
#define WICK_BACKEND_CPU_MATMUL_SHARED_
namespace wick::cpu {

// The inner dimension goes by blocks of this depth. A packed row of the left side is a little
// longer, so that the rows of a tile do not fall into the same set of the first cache.
constexpr int64_t kDepth = 512;
constexpr int64_t kLeftStride = kDepth + 16;

// A block of the result and what is already summed into it.
struct PackedProduct {
  const float* left;   // [M, kLeftStride]
  const float* right;  // panels [K, TileColumns()]
  const float* bias;   // [N] or null
  int64_t M, N, K;
  bool accumulate;
  float* c;
  int64_t c_stride;
};

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// The largest tile whose sums, with a row of the right side, fit into the registers.
#if HWY_TARGET == HWY_AVX3
constexpr int64_t kTileRows = 14;
constexpr int64_t kTileVectors = 2;
#elif HWY_TARGET == HWY_NEON
constexpr int64_t kTileRows = 8;
constexpr int64_t kTileVectors = 3;
#else
constexpr int64_t kTileRows = 6;
constexpr int64_t kTileVectors = 2;
#endif

HWY_INLINE int64_t tile_columns() {
  return kTileVectors * static_cast<int64_t>(hn::Lanes(DF()));
}

int64_t TileColumns() {
  return tile_columns();
}

int64_t TileRows() {
  return kTileRows;
}

template <int64_t kRows>
HWY_INLINE void multiply_tile(const PackedProduct& p, int64_t m, int64_t n) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* left = p.left + m * kLeftStride;
  const float* right = p.right + n * p.K;
  VF sum[kRows][kTileVectors];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
      sum[i][j] = hn::Zero(d);
    }
  }
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t k = 0; k < p.K; ++k) {
    if (k % kLine == 0) {  // the rows of the next tile, a line each
      WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
        hwy::Prefetch(left + (kRows + i) * kLeftStride);
      }
    }
    VF across[kTileVectors];
    WICK_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
      across[j] = hn::LoadU(d, right + j * lanes);
    }
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      const VF down = hn::Set(d, left[i * kLeftStride]);
      WICK_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
        sum[i][j] = hn::MulAdd(down, across[j], sum[i][j]);
      }
    }
    ++left;
    right += kTileVectors * lanes;
  }
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kTileVectors; ++j) {
      const int64_t column = n + j * lanes;
      float* to = p.c + (m + i) * p.c_stride + column;
      VF value = sum[i][j];
      if (column + lanes <= p.N) {
        value = p.accumulate ? hn::Add(value, hn::LoadU(d, to)) : value;
        value = p.bias != nullptr ? hn::Add(value, hn::LoadU(d, p.bias + column)) : value;
        hn::StoreU(value, d, to);
      } else if (column < p.N) {
        const size_t part = p.N - column;
        value = p.accumulate ? hn::Add(value, load_part(d, to, part)) : value;
        value = p.bias != nullptr ? hn::Add(value, load_part(d, p.bias + column, part)) : value;
        store_part(d, value, to, part);
      }
    }
  }
}

template <int64_t kRows>
HWY_INLINE void multiply_rows(const PackedProduct& p, int64_t m, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows < kRows) {
      multiply_rows<kRows - 1>(p, m, rows);
      return;
    }
    for (int64_t n = 0; n < p.N; n += tile_columns()) {
      multiply_tile<kRows>(p, m, n);
    }
  }
}

void MultiplyPacked(const PackedProduct& p) {
  for (int64_t m = 0; m < p.M; m += kTileRows) {
    multiply_rows<kTileRows>(p, m, HWY_MIN(kTileRows, p.M - m));
  }
}

// [K, M] columns become rows of the left side.
void PackLeftTransposed(const float* a, int64_t stride, int64_t rows, int64_t depth, float* to) {
  transpose(a, stride, depth, rows, to, kLeftStride);
}

// `columns` of the right side from b[N, K] (transposed) or b[K, N], into panels.
template <class Weight>
HWY_INLINE void pack_right(const Weight* b, int64_t stride, bool transposed, int64_t columns,
                           int64_t depth, float* to) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t width = tile_columns();
  for (int64_t n = 0; n < columns; n += width, to += width * depth) {
    const int64_t count = HWY_MIN(width, columns - n);
    if (count < width) {
      for (int64_t i = 0; i < width * depth; ++i) {
        to[i] = 0;
      }
    }
    if (transposed) {
      transpose(b + n * stride, stride, count, depth, to, width);
      continue;
    }
    for (int64_t k = 0; k < depth; ++k) {
      const Weight* from = b + k * stride + n;
      int64_t j = 0;
      for (; j + lanes <= count; j += lanes) {
        hn::StoreU(load(d, from + j), d, to + k * width + j);
      }
      for (; j < count; ++j) {
        to[k * width + j] = to_f32(from[j]);
      }
    }
  }
}

// One instance a weight type, since what is exported is no template.
#define WICK_MATMUL(Weight)                                                                 \
  void PackRight##Weight(const Weight* b, int64_t stride, bool transposed, int64_t columns, \
                         int64_t depth, float* to) {                                        \
    pack_right(b, stride, transposed, columns, depth, to);                                  \
  }
WICK_MATMUL(float)
WICK_MATMUL(Bf16)
WICK_MATMUL(F16)
#undef WICK_MATMUL

void AddRows(const float* x, int64_t stride, int64_t T, int64_t columns, float* out) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t n = 0;
  for (; n + lanes <= columns; n += lanes) {
    VF sum = hn::LoadU(d, out + n);
    for (int64_t t = 0; t < T; ++t) {
      sum = hn::Add(sum, hn::LoadU(d, x + t * stride + n));
    }
    hn::StoreU(sum, d, out + n);
  }
  for (; n < columns; ++n) {
    for (int64_t t = 0; t < T; ++t) {
      out[n] += x[t * stride + n];
    }
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
