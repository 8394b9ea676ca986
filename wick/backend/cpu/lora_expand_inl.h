// Expand: y[t,n] (+)= scale sum_r s[t,r] w[r,n], w in panels. Part of lora_inl.h.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_LORA_EXPAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_LORA_EXPAND_INL_H_
#undef WICK_BACKEND_CPU_LORA_EXPAND_INL_H_
#else
#define WICK_BACKEND_CPU_LORA_EXPAND_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include <type_traits>

#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_LORA_EXPAND_SHARED_
#define WICK_BACKEND_CPU_LORA_EXPAND_SHARED_
namespace wick::cpu {

// Rows of two matrices that belong together: row i of a call is row index[i], or row i if null.
struct SkinnyRows {
  const int32_t* index;
  int64_t count;
  int64_t wide_stride, narrow_stride;  // of the n-wide and of the r-wide matrix
};

struct SkinnySize {
  int64_t n, R;
  int64_t stride;  // of the rows of w or of g
  float scale;
  bool accumulate = true;  // Expand and Collect: y += instead of y =
};

enum class Stored : uint8_t { rank_first, rank_last };  // w as [R, n] or as [n, R]

// Floats of panels that are used at a time: half of the first cache.
constexpr int64_t kCachedPanels = 4096;

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR  // 16 registers
constexpr int64_t kExpandVectors = 2;
#else  // 32 registers
constexpr int64_t kExpandVectors = 4;
#endif
constexpr int64_t kExpandRows = 6;

// Panels of as many columns as a tile has: [panel][r][column], the last one padded.
HWY_INLINE int64_t panel_columns() {
  return kExpandVectors * static_cast<int64_t>(hn::Lanes(DF()));
}

int64_t PanelColumns() {
  return panel_columns();
}

HWY_INLINE int64_t row_at(const SkinnyRows& rows, int64_t i) {
  return rows.index == nullptr ? i : rows.index[i];
}

#if HWY_TARGET == HWY_AVX3
// to[r][n] = from[n][r] of as many rows n as a vector has lanes. Seen as one array, each pass
// brings its even elements ahead of the odd ones, which takes the lowest bit of r from the end of
// an index to its front.
template <int64_t kRanks>
HWY_INLINE void spread_ranks(const float* from, float* to, int64_t to_stride) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF v[kRanks];
  WICK_UNROLL for (int64_t i = 0; i < kRanks; ++i) {
    v[i] = hn::LoadU(d, from + i * lanes);
  }
  WICK_UNROLL for (int64_t bit = 1; bit < kRanks; bit *= 2) {
    VF next[kRanks];
    WICK_UNROLL for (int64_t i = 0; i < kRanks / 2; ++i) {
      next[i] = hn::ConcatEven(d, v[2 * i + 1], v[2 * i]);
      next[i + kRanks / 2] = hn::ConcatOdd(d, v[2 * i + 1], v[2 * i]);
    }
    WICK_UNROLL for (int64_t i = 0; i < kRanks; ++i) {
      v[i] = next[i];
    }
  }
  WICK_UNROLL for (int64_t r = 0; r < kRanks; ++r) {
    hn::StoreU(v[r], d, to + r * to_stride);
  }
}
#endif

// As transpose() of [rows, R] without gaps.
HWY_INLINE void transpose_ranks(const float* from, int64_t rows, int64_t R, float* to,
                                int64_t to_stride) {
  int64_t n = 0;
#if HWY_TARGET == HWY_AVX3
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  for (; R == 4 && n + lanes <= rows; n += lanes) {
    spread_ranks<4>(from + 4 * n, to + n, to_stride);
  }
  for (; R == 8 && n + lanes <= rows; n += lanes) {
    spread_ranks<8>(from + 8 * n, to + n, to_stride);
  }
#endif
  transpose(from + n * R, R, rows - n, R, to + n, to_stride);
}

// Columns [first, first + columns) of w into panels of their own.
void PackPanels(const float* w, Stored stored, int64_t first, int64_t columns,
                const SkinnySize& size, float* panels) {
  const auto [n, R, stride, scale, accumulate] = size;
  const int64_t width = panel_columns();
  for (int64_t at = 0; at < columns; at += width, panels += width * R) {
    const int64_t of_panel = HWY_MIN(width, columns - at);
    if (of_panel < width) {
      for (int64_t i = 0; i < width * R; ++i) {
        panels[i] = 0;
      }
    }
    if (stored == Stored::rank_last) {
      transpose_ranks(w + (first + at) * R, of_panel, R, panels, width);
      continue;
    }
    for (int64_t r = 0; r < R; ++r) {
      const float* row = w + r * n + first + at;
      for (int64_t i = 0; i < of_panel; ++i) {
        panels[r * width + i] = row[i];
      }
    }
  }
}

template <int64_t kRows>
HWY_INLINE void expand_tile(const float* const* s, const float* panel, const SkinnySize& size,
                            int64_t columns, float* const* y) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF sum[kRows][kExpandVectors];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kExpandVectors; ++j) {
      sum[i][j] = hn::Zero(d);
    }
  }
  for (int64_t r = 0; r < size.R; ++r) {
    VF right[kExpandVectors];
    WICK_UNROLL for (int64_t j = 0; j < kExpandVectors; ++j) {
      right[j] = hn::LoadU(d, panel + (r * kExpandVectors + j) * lanes);
    }
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      const VF left = hn::Set(d, s[i][r]);
      WICK_UNROLL for (int64_t j = 0; j < kExpandVectors; ++j) {
        sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
      }
    }
  }
  const VF scale = hn::Set(d, size.scale);
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kExpandVectors; ++j) {
      float* to = y[i] + j * lanes;
      const int64_t left = columns - j * lanes;
      if (left >= lanes) {
        const VF before = size.accumulate ? hn::LoadU(d, to) : hn::Zero(d);
        hn::StoreU(hn::MulAdd(scale, sum[i][j], before), d, to);
      } else if (left > 0) {
        const VF before = size.accumulate ? load_part(d, to, left) : hn::Zero(d);
        store_part(d, hn::MulAdd(scale, sum[i][j], before), to, left);
      }
    }
  }
}

// Columns [begin, end), whose panels are in the first cache, along the rows: the processor then
// sees the next columns coming, and not the rows after the last, which may be another core's.
HWY_INLINE void expand_columns(const float* s, const float* panels, const SkinnyRows& rows,
                               const SkinnySize& size, int64_t begin, int64_t end, float* y) {
  const int64_t width = panel_columns();
  const float* from[kExpandRows];
  float* to[kExpandRows];
  const auto tiles_of_rows = [&](int64_t first, auto count) HWY_ATTR {
    constexpr int64_t kRows = decltype(count)::value;
    for (int64_t i = 0; i < kRows; ++i) {
      from[i] = s + row_at(rows, first + i) * rows.narrow_stride;
      to[i] = y + row_at(rows, first + i) * rows.wide_stride + begin;
    }
    for (int64_t n = begin; n < end; n += width) {
      expand_tile<kRows>(from, panels + (n - begin) * size.R, size, HWY_MIN(width, end - n), to);
      for (int64_t i = 0; i < kRows; ++i) {
        to[i] += width;
      }
    }
  };
  int64_t t = 0;
  for (; t + kExpandRows <= rows.count; t += kExpandRows) {
    tiles_of_rows(t, std::integral_constant<int64_t, kExpandRows>());
  }
  for (; t + 2 <= rows.count; t += 2) {
    tiles_of_rows(t, std::integral_constant<int64_t, 2>());
  }
  if (t < rows.count) {
    tiles_of_rows(t, std::integral_constant<int64_t, 1>());
  }
}

HWY_INLINE int64_t columns_at_a_time(int64_t R) {
  const int64_t width = panel_columns();
  return width * HWY_MAX(int64_t{1}, kCachedPanels / (width * HWY_MAX(int64_t{1}, R)));
}

void Expand(const float* s, const float* panels, const SkinnyRows& rows, const SkinnySize& size,
            float* y) {
  const int64_t step = columns_at_a_time(size.R);
  for (int64_t begin = 0; begin < size.n; begin += step) {
    expand_columns(s, panels + begin * size.R, rows, size, begin, HWY_MIN(begin + step, size.n), y);
  }
}

// The ranks up to which ExpandOnce serves.
int64_t ExpandOnceRanks() {
  return kCachedPanels / panel_columns();
}

// The same of w as it is stored, for rows so many that no other call will want its panels: they do
// not leave the first cache then.
void ExpandOnce(const float* s, const float* w, Stored stored, const SkinnyRows& rows,
                const SkinnySize& size, float* y) {
  HWY_ALIGN float panels[kCachedPanels];
  const int64_t step = columns_at_a_time(size.R);
  for (int64_t begin = 0; begin < size.n; begin += step) {
    const int64_t end = HWY_MIN(begin + step, size.n);
    PackPanels(w, stored, begin, end - begin, size, panels);
    expand_columns(s, panels, rows, size, begin, end, y);
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
