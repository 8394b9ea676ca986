// The inner loops of LoRA: shrink, expand, collect (lora.cpp says what they are).
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_LORA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_LORA_INL_H_
#undef WICK_BACKEND_CPU_LORA_INL_H_
#else
#define WICK_BACKEND_CPU_LORA_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include "wick/backend/cpu/lora_expand_inl.h"
#include "wick/backend/cpu/simd_inl.h"

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR  // 16 registers
constexpr int64_t kShrinkRows = 3;
constexpr int64_t kCollectRanks = 4;
#else  // 32 registers
// No more rows and ranks than a set of the first cache has ways: where the width is a power of two,
// all of them lie in one set.
constexpr int64_t kShrinkRows = 4;
constexpr int64_t kCollectRanks = 8;
#endif
constexpr int64_t kShrinkRanks = 4;
constexpr int64_t kCollectVectors = 3;

template <int64_t kRows, int64_t kRanks>
HWY_INLINE void shrink_tile(const float* const* x, const float* w, const SkinnySize& size,
                            float* const* s) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF sum[kRows][kRanks];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
      sum[i][r] = hn::Zero(d);
    }
  }
  const auto step = [&](const VF* left, int64_t r, VF right) HWY_ATTR {
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      sum[i][r] = hn::MulAdd(left[i], right, sum[i][r]);
    }
  };
  int64_t n = 0;
  VF left[kRows];
  for (; n + lanes <= size.n; n += lanes) {
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      left[i] = hn::LoadU(d, x[i] + n);
    }
    WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
      step(left, r, hn::LoadU(d, w + r * size.stride + n));
    }
  }
  if (n < size.n) {
    const size_t rest = size.n - n;
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      left[i] = load_part(d, x[i] + n, rest);
    }
    WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
      step(left, r, load_part(d, w + r * size.stride + n, rest));
    }
  }
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    if constexpr (kRanks == 4) {
      store_sums(d, sum[i][0], sum[i][1], sum[i][2], sum[i][3], s[i]);
    } else {
      WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
        s[i][r] = sum_of(d, sum[i][r]);
      }
    }
    for (int64_t r = 0; r < kRanks; ++r) {
      s[i][r] *= size.scale;
    }
  }
}

template <int64_t kRows>
HWY_INLINE void shrink_rows(const float* const* x, const float* w, const SkinnySize& size,
                            float* const* s) {
  float* to[kRows];
  int64_t r = 0;
  const auto advance = [&](int64_t ranks) {
    w += ranks * size.stride;
    r += ranks;
    for (int64_t i = 0; i < kRows; ++i) {
      to[i] = s[i] + r;
    }
  };
  advance(0);
  for (; r + kShrinkRanks <= size.R; advance(kShrinkRanks)) {
    shrink_tile<kRows, kShrinkRanks>(x, w, size, to);
  }
  for (; r < size.R; advance(1)) {
    shrink_tile<kRows, 1>(x, w, size, to);
  }
}

// A row alone: w then comes from memory, which serves one stream at its full rate. The same bits as
// shrink_rows<1>.
HWY_INLINE void shrink_alone(const float* x, const float* w, const SkinnySize& size, float* s) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto dot = [&](int64_t r) HWY_ATTR {
    const float* row = w + r * size.stride;
    VF sum = hn::Zero(d);
    int64_t n = 0;
    for (; n + lanes <= size.n; n += lanes) {
      ask_ahead(reinterpret_cast<uintptr_t>(row + n) + kStreamAhead, 1);
      sum = hn::MulAdd(hn::LoadU(d, x + n), hn::LoadU(d, row + n), sum);
    }
    if (n < size.n) {
      const size_t rest = size.n - n;
      sum = hn::MulAdd(load_part(d, x + n, rest), load_part(d, row + n, rest), sum);
    }
    return sum;
  };
  int64_t r = 0;
  for (; r + 4 <= size.R; r += 4) {
    const VF sum0 = dot(r);
    const VF sum1 = dot(r + 1);
    const VF sum2 = dot(r + 2);
    const VF sum3 = dot(r + 3);
    store_sums(d, sum0, sum1, sum2, sum3, s + r);
    for (int64_t i = r; i < r + 4; ++i) {
      s[i] *= size.scale;
    }
  }
  for (; r < size.R; ++r) {
    s[r] = sum_of(d, dot(r)) * size.scale;
  }
}

void Shrink(const float* x, const float* w, const SkinnyRows& rows, const SkinnySize& size,
            float* s) {
  if (rows.count == 1) {
    const int64_t row = row_at(rows, 0);
    shrink_alone(x + row * rows.wide_stride, w, size, s + row * rows.narrow_stride);
    return;
  }
  const float* from[kShrinkRows];
  float* to[kShrinkRows];
  const auto point = [&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      from[i] = x + row_at(rows, first + i) * rows.wide_stride;
      to[i] = s + row_at(rows, first + i) * rows.narrow_stride;
    }
  };
  int64_t t = 0;
  for (; t + kShrinkRows <= rows.count; t += kShrinkRows) {
    point(t, kShrinkRows);
    shrink_rows<kShrinkRows>(from, w, size, to);
  }
  for (; t < rows.count; ++t) {
    point(t, 1);
    shrink_rows<1>(from, w, size, to);
  }
}

int64_t ShrinkTileRows() {
  return kShrinkRows;
}

// One row, with w [n, R] as it is stored: packing would cost more than the product.
void ExpandOneRow(const float* s, const float* w, const SkinnySize& size, float* y) {
  int64_t n = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Full128<float> d;
  const hn::Full128<uint64_t> pairs;
  const int64_t whole = size.R / 4 * 4;
  for (; n + 4 <= size.n && whole > 0; n += 4) {
    const float* row = w + n * size.R;
    auto sum0 = hn::Zero(d);
    auto sum1 = sum0;
    auto sum2 = sum0;
    auto sum3 = sum0;
    for (int64_t r = 0; r < whole; r += 4) {
      const auto left = hn::LoadU(d, s + r);
      sum0 = hn::MulAdd(left, hn::LoadU(d, row + r), sum0);
      sum1 = hn::MulAdd(left, hn::LoadU(d, row + size.R + r), sum1);
      sum2 = hn::MulAdd(left, hn::LoadU(d, row + 2 * size.R + r), sum2);
      sum3 = hn::MulAdd(left, hn::LoadU(d, row + 3 * size.R + r), sum3);
    }
    const auto sum01 = hn::BitCast(
        pairs, hn::Add(hn::InterleaveLower(d, sum0, sum1), hn::InterleaveUpper(d, sum0, sum1)));
    const auto sum23 = hn::BitCast(
        pairs, hn::Add(hn::InterleaveLower(d, sum2, sum3), hn::InterleaveUpper(d, sum2, sum3)));
    auto sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, sum01, sum23)),
                        hn::BitCast(d, hn::InterleaveUpper(pairs, sum01, sum23)));
    if (whole < size.R) {
      HWY_ALIGN float rest[4] = {};
      for (int64_t r = whole; r < size.R; ++r) {
        for (int64_t i = 0; i < 4; ++i) {
          rest[i] += s[r] * row[i * size.R + r];
        }
      }
      sums = hn::Add(sums, hn::Load(d, rest));
    }
    const auto before = size.accumulate ? hn::LoadU(d, y + n) : hn::Zero(d);
    hn::StoreU(hn::MulAdd(hn::Set(d, size.scale), sums, before), d, y + n);
  }
#endif
  for (; n < size.n; ++n) {
    float sum = 0;
    for (int64_t r = 0; r < size.R; ++r) {
      sum += s[r] * w[n * size.R + r];
    }
    y[n] = size.scale * sum + (size.accumulate ? y[n] : 0.0F);
  }
}

// Columns [first, first + columns) of g, ranks [r, r + kRanks).
template <int64_t kRanks, bool kWhole>
HWY_INLINE void collect_tile(const float* s, const float* x, const SkinnyRows& rows,
                             const SkinnySize& size, int64_t columns, float* g) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF sum[kRanks][kCollectVectors];
  WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
    WICK_UNROLL for (int64_t j = 0; j < kCollectVectors; ++j) {
      sum[r][j] = hn::Zero(d);
    }
  }
  for (int64_t t = 0; t < rows.count; ++t) {
    VF right[kCollectVectors];
    WICK_UNROLL for (int64_t j = 0; j < kCollectVectors; ++j) {
      const float* from = x + t * rows.wide_stride + j * lanes;
      const int64_t left = columns - j * lanes;
      right[j] = kWhole || left >= lanes ? hn::LoadU(d, from)
                 : left > 0              ? load_part(d, from, left)
                                         : hn::Zero(d);
    }
    WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
      const VF left = hn::Set(d, s[t * rows.narrow_stride + r]);
      WICK_UNROLL for (int64_t j = 0; j < kCollectVectors; ++j) {
        sum[r][j] = hn::MulAdd(left, right[j], sum[r][j]);
      }
    }
  }
  const VF scale = hn::Set(d, size.scale);
  WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
    WICK_UNROLL for (int64_t j = 0; j < kCollectVectors; ++j) {
      float* to = g + r * size.stride + j * lanes;
      const int64_t left = columns - j * lanes;
      if (left >= lanes) {
        const VF before = size.accumulate ? hn::LoadU(d, to) : hn::Zero(d);
        hn::StoreU(hn::MulAdd(scale, sum[r][j], before), d, to);
      } else if (left > 0) {
        const VF before = size.accumulate ? load_part(d, to, left) : hn::Zero(d);
        store_part(d, hn::MulAdd(scale, sum[r][j], before), to, left);
      }
    }
  }
}

template <bool kWhole>
HWY_INLINE void collect_columns(const float* s, const float* x, const SkinnyRows& rows,
                                const SkinnySize& size, int64_t columns, float* g) {
  int64_t r = 0;
  for (; r + kCollectRanks <= size.R; r += kCollectRanks) {
    collect_tile<kCollectRanks, kWhole>(s + r, x, rows, size, columns, g + r * size.stride);
  }
  for (; r < size.R; ++r) {
    collect_tile<1, kWhole>(s + r, x, rows, size, columns, g + r * size.stride);
  }
}

void Collect(const float* s, const float* x, const SkinnyRows& rows, const SkinnySize& size,
             int64_t begin, int64_t end, float* g) {
  const int64_t width = kCollectVectors * static_cast<int64_t>(hn::Lanes(DF()));
  int64_t n = begin;
  for (; n + width <= end; n += width) {
    collect_columns<true>(s, x + n, rows, size, width, g + n);
  }
  if (n < end) {
    collect_columns<false>(s, x + n, rows, size, end - n, g + n);
  }
}

void Transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
               int64_t to_stride) {
  transpose(from, from_stride, rows, columns, to, to_stride);
}

// Of [rows, R] without gaps.
void TransposeRanks(const float* from, int64_t rows, int64_t R, float* to, int64_t to_stride) {
  transpose_ranks(from, rows, R, to, to_stride);
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
