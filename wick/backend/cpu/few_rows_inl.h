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

#include <hwy/highway.h>

#include <algorithm>
#include <atomic>

#include "wick/backend/cpu/few_rows.h"
#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_FEW_ROWS_SHARED_
#define WICK_BACKEND_CPU_FEW_ROWS_SHARED_
namespace wick::cpu {

// The adapter of a row: its change to the output is scaling s B^T.
struct RowAdapter {
  const void* b;   // [N, R]; null: the row has none
  bool narrow;     // b is bf16, else f32
  const float* s;  // [R]
  int64_t R;
  float scaling;
};

// From one row of the left side to the next: whole pairs of the longest vectors.
constexpr int64_t left_stride(int64_t K) {
  return (K + 2 * 64 - 1) / (2 * 64) * (2 * 64);
}

// At most kFewRows rows.
struct FewRowsProduct {
  const float* a;      // [M, K] as arrange_left() leaves it, rows `stride` apart
  int64_t stride;      // left_stride(K)
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

// ---- pairs of vectors of weights: a cache line of them, where they are in bf16 or f16. With loads
// of half a line, each widened on its way, a core gets 16 GB/s of the 25 that memory has for it.
// arrange_left() puts the left side in the same order.

template <class Weight>
HWY_INLINE void load_pair(DF d, const Weight* from, VF& first, VF& second) {
  first = load(d, from);
  second = load(d, from + hn::Lanes(d));
}

#if HWY_TARGET != HWY_SCALAR
// The even elements, then the odd ones: a shift and a mask, where their order would take shuffles.
HWY_INLINE void load_pair(DF d, const Bf16* from, VF& even, VF& odd) {
  const hn::Repartition<uint16_t, DF> narrow;
  const hn::RebindToUnsigned<DF> wide;
  const auto both = hn::BitCast(wide, hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from)));
  even = hn::BitCast(d, hn::ShiftLeft<16>(both));
  odd = hn::BitCast(d, hn::And(both, hn::Set(wide, 0xFFFF0000U)));
}
#endif

#if WICK_SIMD_HALF_FLOATS
HWY_INLINE void load_pair(DF d, const F16* from, VF& first, VF& second) {
  const hn::Repartition<uint16_t, DF> narrow;
  const hn::Half<decltype(narrow)> part;
  const hn::Rebind<hwy::float16_t, DF> half;
  const auto both = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
  first = hn::PromoteTo(d, hn::BitCast(half, hn::LowerHalf(part, both)));
  second = hn::PromoteTo(d, hn::BitCast(half, hn::UpperHalf(part, both)));
}
#endif

// The first `count` elements (fewer than a pair); the rest is zero and not read.
template <class Weight>
HWY_INLINE void load_pair_part(DF d, const Weight* from, int64_t count, VF& first, VF& second) {
  Weight whole[2 * kMaxLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    whole[i] = from[i];
  }
  load_pair(d, whole, first, second);
}

// Copies K values of the left side: in their order, or for weights in bf16 of each pair of vectors
// the even elements, then the odd ones. Zeros follow up to `padded`.
HWY_INLINE void arrange_left(const float* from, int64_t K, int64_t padded, bool split, float* to) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t k = 0;
  for (; k + 2 * lanes <= K; k += 2 * lanes) {
    VF first = hn::LoadU(d, from + k);
    VF second = hn::LoadU(d, from + k + lanes);
    if (split) {
      hn::LoadInterleaved2(d, from + k, first, second);
    }
    hn::StoreU(first, d, to + k);
    hn::StoreU(second, d, to + k + lanes);
  }
  std::fill(to + k, to + padded, 0.0F);
  for (int64_t i = 0; k + i < K; ++i) {
    to[k + (split ? i % 2 * lanes + i / 2 : i)] = from[k + i];
  }
}

// Adds to sums[j][m + i] the products of `depth` elements of rows m + i of a (kRows of them) and of
// rows j of b (kColumns, K apart). Where kAsk, each line of b that is read asks for the one `ahead`
// bytes behind it. The loop holds nothing but loads and products: what else is in it, be it the
// address of a row, is missing where the core looks ahead for loads to begin.
template <int64_t kRows, int64_t kColumns, bool kAsk, class Weight>
HWY_INLINE void dot_block(const FewRowsProduct& p, int64_t m, const float* a, const Weight* b,
                          int64_t depth, int64_t ahead, VF (*sums)[kFewRows]) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Enough sums to hide the delay of an addition, and no more than there are registers for.
  constexpr int64_t kDots = kRows * kColumns;
  constexpr int64_t kPairs = kDots == 1 ? 2 : 1;
  constexpr int64_t kChains = kDots == 1 ? 4 : kDots <= 8 ? 2 : 1;
  const float* left[kRows];
  const Weight* right[kColumns];
  VF sum[kColumns][kRows][kChains];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    left[i] = a + (m + i) * p.stride;
  }
  WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
    right[j] = b + j * p.K;
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      WICK_UNROLL for (int64_t c = 0; c < kChains; ++c) {
        sum[j][i][c] = hn::Zero(d);
      }
    }
  }
  const auto add = [&](int64_t k, int64_t pair, int64_t j, VF first, VF second) HWY_ATTR {
    constexpr int64_t kSecond = kChains == 1 ? 0 : 1;
    const int64_t chain = 2 * pair;
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      VF* to = sum[j][i] + chain;
      to[0] = hn::MulAdd(hn::LoadU(d, left[i] + k), first, to[0]);
      to[kSecond] = hn::MulAdd(hn::LoadU(d, left[i] + k + lanes), second, to[kSecond]);
    }
  };
  VF first;
  VF second;
  int64_t k = 0;
  for (; k + kPairs * 2 * lanes <= depth; k += kPairs * 2 * lanes) {
    WICK_UNROLL for (int64_t pair = 0; pair < kPairs; ++pair) {
      WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
        const int64_t at = k + pair * 2 * lanes;
        if (kAsk && pair == 0) {
          // The lines of one stream at once, those of several each just before its load: asked for
          // together, four streams give 20 GB/s in place of 23. With more rows of a the barrier
          // that holds the compiler to this order costs more than it gains.
          if (kRows == 1) {
            std::atomic_signal_fence(std::memory_order_seq_cst);
          }
          ask_ahead(reinterpret_cast<uintptr_t>(right[j] + at) + ahead,
                    kPairs * 2 * lanes * static_cast<int64_t>(sizeof(Weight)));
        }
        load_pair(d, right[j] + at, first, second);
        add(at, pair, j, first, second);
      }
    }
  }
  for (; k < depth; k += 2 * lanes) {
    const int64_t rest = HWY_MIN(2 * lanes, depth - k);
    WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
      if (rest == 2 * lanes) {
        load_pair(d, right[j] + k, first, second);
      } else {
        load_pair_part(d, right[j] + k, rest, first, second);
      }
      add(k, 0, j, first, second);
    }
  }
  WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      WICK_UNROLL for (int64_t c = 0; c < kChains; ++c) {
        sums[j][m + i] = hn::Add(sums[j][m + i], sum[j][i][c]);
      }
    }
  }
}

// The same for all rows of a. The first of them ask ahead, unless that is 0. All is spelt out: with
// the choice in a function of its own GCC 12 orders the loop of one row so that it is 15 % slower.
template <int64_t kColumns, class Weight>
HWY_INLINE void dot_rows(const FewRowsProduct& p, const float* a, const Weight* b, int64_t depth,
                         int64_t ahead, VF (*sums)[kFewRows]) {
  int64_t m = 0;
  for (; m + 4 <= p.M; m += 4) {
    if (m == 0 && ahead != 0) {
      dot_block<4, kColumns, true>(p, m, a, b, depth, ahead, sums);
    } else {
      dot_block<4, kColumns, false>(p, m, a, b, depth, 0, sums);
    }
  }
  for (; m + 2 <= p.M; m += 2) {
    if (m == 0 && ahead != 0) {
      dot_block<2, kColumns, true>(p, m, a, b, depth, ahead, sums);
    } else {
      dot_block<2, kColumns, false>(p, m, a, b, depth, 0, sums);
    }
  }
  if (m < p.M) {
    if (m == 0 && ahead != 0) {
      dot_block<1, kColumns, true>(p, m, a, b, depth, ahead, sums);
    } else {
      dot_block<1, kColumns, false>(p, m, a, b, depth, 0, sums);
    }
  }
}

// Adds scaling s . B[n] to the sum of a row and a column: a rank of 16 is one more vector of the
// dot product.
template <class Factor>
HWY_INLINE VF add_adapter(const RowAdapter& adapter, const Factor* factors, int64_t n, VF sum) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF scale = hn::Set(d, adapter.scaling);
  const Factor* b = factors + n * adapter.R;
  int64_t r = 0;
  for (; r + lanes <= adapter.R; r += lanes) {
    const VF s = hn::Mul(scale, hn::LoadU(d, adapter.s + r));
    sum = hn::MulAdd(s, load(d, b + r), sum);
  }
  if (r < adapter.R) {
    const size_t rest = adapter.R - r;
    const VF s = hn::Mul(scale, load_part(d, adapter.s + r, rest));
    sum = hn::MulAdd(s, load_part(d, b + r, rest), sum);
  }
  return sum;
}

HWY_INLINE VF add_adapter(const RowAdapter& adapter, int64_t n, VF sum) {
  return adapter.narrow ? add_adapter(adapter, static_cast<const Bf16*>(adapter.b), n, sum)
                        : add_adapter(adapter, static_cast<const float*>(adapter.b), n, sum);
}

// Asks for the rows of B of columns [begin, end): their stream is too thin for the memory to
// foresee.
HWY_INLINE void ask_for_adapter(const FewRowsProduct& p, int64_t begin, int64_t end) {
  if (p.M == 1 && p.adapters != nullptr && p.adapters->b != nullptr && begin < end) {
    const int64_t bytes_of_column =
        p.adapters->R * static_cast<int64_t>(p.adapters->narrow ? sizeof(Bf16) : sizeof(float));
    ask_ahead(reinterpret_cast<uintptr_t>(p.adapters->b) + begin * bytes_of_column,
              (end - begin) * bytes_of_column);
  }
}

template <class Weight>
HWY_INLINE void multiply_few_rows(const FewRowsProduct& p, const Weight* b) {
  // Short rows of b, one after the other, are one stream, which the memory foresees, and their
  // beginnings are asked for. Where the rows of a and that stream would push each other out of the
  // first cache, four rows of b are read at once for one reading of a, and each asks for what lies
  // four rows further: only the second cache then waits for memory.
  constexpr int64_t kCached = 2048;
  const bool whole = p.M * p.K <= kCached;
  const int64_t piece = whole || p.M == 1 ? p.K : 256;
  constexpr int64_t kAsked = 64;
  ask_for_adapter(p, p.begin, HWY_MIN(p.begin + kAsked, p.end));
  VF sums[4][kFewRows];
  for (int64_t n = p.begin; n < p.end; n += 4) {
    if ((n - p.begin) % kAsked == 0) {
      ask_for_adapter(p, n + kAsked, HWY_MIN(n + 2 * kAsked, p.end));
    }
    const int64_t columns = HWY_MIN(4, p.end - n);
    for (auto& column : sums) {
      for (int64_t m = 0; m < p.M; ++m) {
        column[m] = hn::Zero(DF());
      }
    }
    const Weight* rows = b + n * p.K;
    const int64_t four_rows = n + 8 <= p.N ? 4 * p.K * static_cast<int64_t>(sizeof(Weight)) : 0;
    for (int64_t k = 0; k < p.K; k += piece) {
      const int64_t depth = HWY_MIN(piece, p.K - k);
      if (!whole && columns == 4) {
        dot_rows<4>(p, p.a + k, rows + k, depth, four_rows, sums);
        continue;
      }
      for (int64_t j = 0; j < columns; ++j) {
        dot_rows<1>(p, p.a + k, rows + j * p.K + k, depth, kStreamAhead, sums + j);
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

// All of the left side x [M, K] for weights in bf16 (`split`) or others.
void ArrangeLeft(const float* x, int64_t M, int64_t K, bool split, float* to) {
  for (int64_t m = 0; m < M; ++m) {
    arrange_left(x + m * K, K, left_stride(K), split, to + m * left_stride(K));
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
