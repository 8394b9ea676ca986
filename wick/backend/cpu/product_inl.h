// Products of blocks that lie in the cache: c[M,N] = (c +) a[M,K] b[K,N], tiles of c in registers.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_PRODUCT_INL_H_
#undef WICK_BACKEND_CPU_PRODUCT_INL_H_
#else
#define WICK_BACKEND_CPU_PRODUCT_INL_H_
#endif
// clang-format on

#include "wick/backend/cpu/simd_inl.h"

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR  // 16 registers
constexpr int64_t kProductVectors = 2;
#else  // 32 registers
constexpr int64_t kProductVectors = 4;
#endif
constexpr int64_t kProductRows = 6;

// Element (m, k) is at data[m * row + k * column].
struct LeftBlock {
  const float* data;
  int64_t row, column;
};

// The rows lie `stride` apart.
struct RightBlock {
  const float* data;
  int64_t stride;
};

struct ResultBlock {
  float* data;
  int64_t stride;
  bool accumulate;
};

struct BlockSize {
  int64_t M, N, K;
};

// kPart: one vector of which only `part` columns exist.
template <int64_t kRows, int64_t kVectors, bool kPart>
HWY_INLINE void product_tile(const LeftBlock& a, const RightBlock& b, int64_t K,
                             const ResultBlock& c, size_t part) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto get = [&](const float* from)
                       HWY_ATTR { return kPart ? load_part(d, from, part) : hn::LoadU(d, from); };
  const float* left[kRows];
  VF sum[kRows][kVectors];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    left[i] = a.data + i * a.row;
    WICK_UNROLL for (int64_t j = 0; j < kVectors; ++j) {
      sum[i][j] = hn::Zero(d);
    }
  }
  const float* right = b.data;
  for (int64_t k = 0; k < K; ++k, right += b.stride) {
    VF across[kVectors];
    WICK_UNROLL for (int64_t j = 0; j < kVectors; ++j) {
      across[j] = get(right + j * lanes);
    }
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      const VF down = hn::Set(d, left[i][k * a.column]);
      WICK_UNROLL for (int64_t j = 0; j < kVectors; ++j) {
        sum[i][j] = hn::MulAdd(down, across[j], sum[i][j]);
      }
    }
  }
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kVectors; ++j) {
      float* to = c.data + i * c.stride + j * lanes;
      const VF value = c.accumulate ? hn::Add(sum[i][j], get(to)) : sum[i][j];
      if constexpr (kPart) {
        store_part(d, value, to, part);
      } else {
        hn::StoreU(value, d, to);
      }
    }
  }
}

template <int64_t kVectors, bool kPart>
HWY_INLINE void product_columns(LeftBlock a, const RightBlock& b, const BlockSize& size,
                                ResultBlock c, size_t part) {
  int64_t m = 0;
  const auto advance = [&](int64_t rows) {
    m += rows;
    a.data += rows * a.row;
    c.data += rows * c.stride;
  };
  for (; m + kProductRows <= size.M; advance(kProductRows)) {
    product_tile<kProductRows, kVectors, kPart>(a, b, size.K, c, part);
  }
  for (; m + 2 <= size.M; advance(2)) {
    product_tile<2, kVectors, kPart>(a, b, size.K, c, part);
  }
  if (m < size.M) {
    product_tile<1, kVectors, kPart>(a, b, size.K, c, part);
  }
}

HWY_INLINE void block_product(const LeftBlock& a, RightBlock b, const BlockSize& size,
                              ResultBlock c) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  int64_t n = 0;
  const auto advance = [&](int64_t columns) {
    n += columns;
    b.data += columns;
    c.data += columns;
  };
  for (; n + kProductVectors * lanes <= size.N; advance(kProductVectors * lanes)) {
    product_columns<kProductVectors, false>(a, b, size, c, 0);
  }
  for (; n + lanes <= size.N; advance(lanes)) {
    product_columns<1, false>(a, b, size, c, 0);
  }
  if (n < size.N) {
    product_columns<1, true>(a, b, size, c, size.N - n);
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
