// The inner loops of linear layers over a few rows: dot products along the weights as they are
// stored. Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_FEW_ROWS_INL_H_
#undef WICK_BACKEND_CPU_FEW_ROWS_INL_H_
#else
#define WICK_BACKEND_CPU_FEW_ROWS_INL_H_
#endif
// clang-format on

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "wick/backend/cpu/few_rows.h"
#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_FEW_ROWS_SHARED_
#define WICK_BACKEND_CPU_FEW_ROWS_SHARED_
namespace wick::cpu {

// The adapter of a row: its change to the output is scaling s B^T.
struct RowAdapter {
  const float* b;  // [N, R]; null: the row has none
  const float* s;  // [R]
  int64_t R;
  float scaling;
};

// At most kFewRows rows.
struct FewRowsProduct {
  const float* a;      // [M, K]
  const float* bias;   // [N] of the whole product, or null
  int64_t M, N, K;     // of the whole product
  int64_t begin, end;  // columns of c, which are rows of b
  bool accumulate;
  float* c;
  const RowAdapter* adapters;  // [M], or null
};

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// Four columns of a row of c from the sums over their vectors.
HWY_INLINE void store_columns(const FewRowsProduct& p, const VF* sum, int64_t m, int64_t n,
                              int64_t columns) {
  float sums[4];
  store_sums(DF(), sum[0], sum[1], sum[2], sum[3], sums);
  float* c = p.c + m * p.N + n;
  for (int64_t j = 0; j < columns; ++j) {
    const float before = p.accumulate ? c[j] : 0.0F;
    c[j] = sums[j] + before + (p.bias != nullptr ? p.bias[n + j] : 0.0F);
  }
}

// Adds the products of a piece of a row of b with kRows rows of a to the sums. One row of b at a
// time: the memory then sees one stream, and serves it twice as fast as four.
template <int64_t kRows, class Weight>
HWY_INLINE void dot_piece(const float* a, int64_t stride, const Weight* b, int64_t depth,
                          VF* sums) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kChains = 4 / kRows;  // enough sums to hide the delay of an addition
  VF sum[kRows][kChains];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t c = 0; c < kChains; ++c) {
      sum[i][c] = hn::Zero(d);
    }
  }
  int64_t k = 0;
  for (; k + kChains * lanes <= depth; k += kChains * lanes) {
    WICK_UNROLL for (int64_t c = 0; c < kChains; ++c) {
      const int64_t at = k + c * lanes;
      const VF weight = load(d, b + at);
      WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
        sum[i][c] = hn::MulAdd(hn::LoadU(d, a + i * stride + at), weight, sum[i][c]);
      }
    }
  }
  for (; k < depth; k += lanes) {
    const int64_t rest = HWY_MIN(lanes, depth - k);
    const VF weight = rest == lanes ? load(d, b + k) : load_part(d, b + k, rest);
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      const float* from = a + i * stride + k;
      const VF left = rest == lanes ? hn::LoadU(d, from) : load_part(d, from, rest);
      sum[i][0] = hn::MulAdd(left, weight, sum[i][0]);
    }
  }
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t c = 0; c < kChains; ++c) {
      sums[i] = hn::Add(sums[i], sum[i][c]);
    }
  }
}

// Adds scaling s . B[n] to the sum of a row and a column: a rank of 16 is one more vector of the
// dot product.
HWY_INLINE VF add_adapter(const RowAdapter& adapter, int64_t n, VF sum) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF scale = hn::Set(d, adapter.scaling);
  const float* b = adapter.b + n * adapter.R;
  int64_t r = 0;
  for (; r + lanes <= adapter.R; r += lanes) {
    const VF s = hn::Mul(scale, hn::LoadU(d, adapter.s + r));
    sum = hn::MulAdd(s, hn::LoadU(d, b + r), sum);
  }
  if (r < adapter.R) {
    const size_t rest = adapter.R - r;
    const VF s = hn::Mul(scale, load_part(d, adapter.s + r, rest));
    sum = hn::MulAdd(s, load_part(d, b + r, rest), sum);
  }
  return sum;
}

template <class Weight>
HWY_INLINE void prefetch(const Weight* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Weight);
  for (int64_t i = 0; i < count; i += kLine) {
    hwy::Prefetch(from + i);
  }
}

// Asks for the rows of B of columns [begin, end): their stream is too thin for the memory to
// foresee.
HWY_INLINE void prefetch_adapter(const FewRowsProduct& p, int64_t begin, int64_t end) {
  if (p.M == 1 && p.adapters != nullptr && p.adapters->b != nullptr && begin < end) {
    prefetch(p.adapters->b + begin * p.adapters->R, (end - begin) * p.adapters->R);
  }
}

template <class Weight>
HWY_INLINE void multiply_few_rows(const FewRowsProduct& p, const Weight* b) {
  // Whole rows of b are one stream, which the memory foresees. Where the rows of a would not stay
  // in the first cache, pieces of them do, and the pieces of the next rows of b are asked for.
  constexpr int64_t kCached = 4096;
  const int64_t piece = p.M == 1 || p.M * p.K <= kCached ? p.K : 256;
  constexpr int64_t kAhead = 32;
  prefetch_adapter(p, p.begin, HWY_MIN(p.begin + kAhead, p.end));
  VF sums[4][kFewRows];
  for (int64_t n = p.begin; n < p.end; n += 4) {
    prefetch_adapter(p, n + kAhead, HWY_MIN(n + kAhead + 4, p.end));
    const int64_t columns = HWY_MIN(4, p.end - n);
    for (auto& column : sums) {
      for (int64_t m = 0; m < p.M; ++m) {
        column[m] = hn::Zero(DF());
      }
    }
    for (int64_t k = 0; k < p.K; k += piece) {
      const int64_t depth = HWY_MIN(piece, p.K - k);
      for (int64_t j = 0; j < columns; ++j) {
        const float* left = p.a + k;
        const Weight* right = b + (n + j) * p.K + k;
        if (piece < p.K && n + 4 + j < p.N) {
          prefetch(right + 4 * p.K, depth);
        }
        int64_t m = 0;
        for (; m + 4 <= p.M; m += 4) {
          dot_piece<4>(left + m * p.K, p.K, right, depth, sums[j] + m);
        }
        for (; m + 2 <= p.M; m += 2) {
          dot_piece<2>(left + m * p.K, p.K, right, depth, sums[j] + m);
        }
        if (m < p.M) {
          dot_piece<1>(left + m * p.K, p.K, right, depth, sums[j] + m);
        }
      }
    }
    for (int64_t m = 0; p.adapters != nullptr && m < p.M; ++m) {
      for (int64_t j = 0; p.adapters[m].b != nullptr && j < columns; ++j) {
        sums[j][m] = add_adapter(p.adapters[m], n + j, sums[j][m]);
      }
    }
    for (int64_t m = 0; m < p.M; ++m) {
      const VF row[4] = {sums[0][m], sums[1][m], sums[2][m], sums[3][m]};
      store_columns(p, row, m, n, columns);
    }
  }
}

// One instance a weight type, since what is exported is no template.
#define WICK_FEW_ROWS(Weight)                                              \
  void MultiplyFewRows##Weight(const FewRowsProduct& p, const Weight* b) { \
    multiply_few_rows(p, b);                                               \
  }
WICK_FEW_ROWS(float)
WICK_FEW_ROWS(Bf16)
WICK_FEW_ROWS(F16)
#undef WICK_FEW_ROWS

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
