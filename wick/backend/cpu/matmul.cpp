// Dense products (after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication",
// 2008): both sides are packed block by block into the order in which the inner loop reads them,
// and a tile of the result stays in registers. Packing widens bf16 and f16, so narrow weights cost
// no pass of their own and run at the rate of f32.
//
// With a few rows there is nothing to reuse, and packing would cost more than the product: then
// dot products read the weights as they are stored, at the speed of memory.
#include "wick/backend/cpu/matmul.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/matmul.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
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

struct FewRowsProduct {
  const float* a;      // [M, K]
  const float* bias;   // [N] of the whole product, or null
  int64_t M, N, K;     // of the whole product
  int64_t begin, end;  // columns of c, which are rows of b
  bool accumulate;
  float* c;
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

// Dot products of kRows rows of a and kColumns rows of b.
template <int64_t kRows, int64_t kColumns, class Weight>
HWY_INLINE void dot_tile(const FewRowsProduct& p, const Weight* b, int64_t m, int64_t n) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* a = p.a + m * p.K;
  VF sum[kRows][kColumns];
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
      sum[i][j] = hn::Zero(d);
    }
  }
  const auto step = [&](const VF* left, int64_t j, VF right) HWY_ATTR {
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      sum[i][j] = hn::MulAdd(left[i], right, sum[i][j]);
    }
  };
  VF left[kRows];
  int64_t k = 0;
  for (; k + lanes <= p.K; k += lanes) {
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      left[i] = hn::LoadU(d, a + i * p.K + k);
    }
    WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
      step(left, j, load(d, b + j * p.K + k));
    }
  }
  if (k < p.K) {
    const size_t rest = p.K - k;
    WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
      left[i] = load_part(d, a + i * p.K + k, rest);
    }
    WICK_UNROLL for (int64_t j = 0; j < kColumns; ++j) {
      step(left, j, load_part(d, b + j * p.K + k, rest));
    }
  }
  WICK_UNROLL for (int64_t i = 0; i < kRows; ++i) {
    float sums[kColumns];
    if constexpr (kColumns == 4) {
      store_sums(d, sum[i][0], sum[i][1], sum[i][2], sum[i][3], sums);
    } else {
      sums[0] = sum_of(d, sum[i][0]);
    }
    float* c = p.c + (m + i) * p.N + n;
    for (int64_t j = 0; j < kColumns; ++j) {
      const float before = p.accumulate ? c[j] : 0.0F;
      c[j] = sums[j] + before + (p.bias != nullptr ? p.bias[n + j] : 0.0F);
    }
  }
}

template <int64_t kColumns, class Weight>
HWY_INLINE void dot_columns(const FewRowsProduct& p, const Weight* b, int64_t n) {
  int64_t m = 0;
  for (; m + 4 <= p.M; m += 4) {
    dot_tile<4, kColumns>(p, b, m, n);
  }
  for (; m + 2 <= p.M; m += 2) {
    dot_tile<2, kColumns>(p, b, m, n);
  }
  if (m < p.M) {
    dot_tile<1, kColumns>(p, b, m, n);
  }
}

template <class Weight>
HWY_INLINE void multiply_few_rows(const FewRowsProduct& p, const Weight* b) {
  int64_t n = p.begin;
  for (; n + 4 <= p.end; n += 4) {
    dot_columns<4>(p, b + n * p.K, n);
  }
  for (; n < p.end; ++n) {
    dot_columns<1>(p, b + n * p.K, n);
  }
}

// One instance a weight type, since what is exported is no template.
#define WICK_MATMUL(Weight)                                                                 \
  void PackRight##Weight(const Weight* b, int64_t stride, bool transposed, int64_t columns, \
                         int64_t depth, float* to) {                                        \
    pack_right(b, stride, transposed, columns, depth, to);                                  \
  }                                                                                         \
  void MultiplyFewRows##Weight(const FewRowsProduct& p, const Weight* b) {                  \
    multiply_few_rows(p, b);                                                                \
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

#if HWY_ONCE

#include <cstring>

namespace wick::cpu {

HWY_EXPORT(TileColumns);
HWY_EXPORT(TileRows);
HWY_EXPORT(MultiplyPacked);
HWY_EXPORT(PackLeftTransposed);
HWY_EXPORT(PackRightfloat);
HWY_EXPORT(PackRightBf16);
HWY_EXPORT(PackRightF16);
HWY_EXPORT(MultiplyFewRowsfloat);
HWY_EXPORT(MultiplyFewRowsBf16);
HWY_EXPORT(MultiplyFewRowsF16);
HWY_EXPORT(AddRows);

namespace {

// Overloads by the stored type, for with_elements.
void pack_right(const float* b, int64_t stride, bool transposed, int64_t columns, int64_t depth,
                float* to) {
  HWY_DYNAMIC_DISPATCH(PackRightfloat)(b, stride, transposed, columns, depth, to);
}
void pack_right(const Bf16* b, int64_t stride, bool transposed, int64_t columns, int64_t depth,
                float* to) {
  HWY_DYNAMIC_DISPATCH(PackRightBf16)(b, stride, transposed, columns, depth, to);
}
void pack_right(const F16* b, int64_t stride, bool transposed, int64_t columns, int64_t depth,
                float* to) {
  HWY_DYNAMIC_DISPATCH(PackRightF16)(b, stride, transposed, columns, depth, to);
}

void multiply_few_rows(const FewRowsProduct& p, const float* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsfloat)(p, b);
}
void multiply_few_rows(const FewRowsProduct& p, const Bf16* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsBf16)(p, b);
}
void multiply_few_rows(const FewRowsProduct& p, const F16* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsF16)(p, b);
}

constexpr int64_t kFewRows = 8;
constexpr int64_t kSerialProducts = 150'000;  // below, a second thread costs more than it saves

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct MatmulSizes {
  int64_t M, N, K;
};

void multiply_by_dots(const Context& context, const Tensor& a, const Tensor& b,
                      const MatmulArgs& args, const MatmulSizes& sizes, const float* bias,
                      const Tensor& c) {
  const auto [M, N, K] = sizes;
  // Tasks of whole weight rows, some 64k weights each.
  const int64_t columns =
      M * N * K < kSerialProducts ? N : std::max<int64_t>(4, rows_of(65536, K) / 4 * 4);
  with_elements(b, [&, M = M, N = N, K = K](const auto* weights) {
    for_ranges(context, N, columns, [&](int64_t begin, int64_t end) {
      multiply_few_rows(
          {a.data<float>(), bias, M, N, K, begin, end, args.accumulate, c.data<float>()}, weights);
    });
  });
}

// Rows [m0, m0 + rows) of the left side, all depths, into [depth block][row][kLeftStride].
void pack_left(const Context& context, const Tensor& a, MatmulForm form, const MatmulSizes& sizes,
               int64_t m0, int64_t rows, float* to) {
  const float* data = a.data<float>();
  for_ranges(context, rows, rows_of(65536, sizes.K), [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < sizes.K; k += kDepth) {
      const int64_t depth = std::min(kDepth, sizes.K - k);
      float* block = to + (k / kDepth * rows + begin) * kLeftStride;
      if (form == MatmulForm::tn) {
        HWY_DYNAMIC_DISPATCH(PackLeftTransposed)
        (data + k * sizes.M + m0 + begin, sizes.M, end - begin, depth, block);
        continue;
      }
      for (int64_t m = begin; m < end; ++m) {
        std::memcpy(block + (m - begin) * kLeftStride, data + (m0 + m) * sizes.K + k,
                    depth * sizeof(float));
      }
    }
  });
}

// How the rows and columns of the result are cut into tasks.
struct Cut {
  int64_t rows, columns;
};

Cut cut_result(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kColumns = 64;  // their packed weights stay in the second cache
  constexpr int64_t kWantedTasks = 8;
  if (M * N * K < kSerialProducts) {
    return {M, N};
  }
  const int64_t width = HWY_DYNAMIC_DISPATCH(TileColumns)();
  const int64_t columns = std::max(width, kColumns / width * width);
  const int64_t tasks = ceil_div(N, columns);
  // Each cut by rows packs the weights once more.
  const int64_t parts = tasks >= kWantedTasks ? 1 : ceil_div(kWantedTasks, tasks);
  const int64_t tile = HWY_DYNAMIC_DISPATCH(TileRows)();
  return {std::max(4 * tile, ceil_div(ceil_div(M, parts), tile) * tile), columns};
}

void multiply_packed(const Context& context, const Tensor& a, const Tensor& b,
                     const MatmulArgs& args, const MatmulSizes& sizes, const float* bias,
                     const Tensor& c) {
  const auto [M, N, K] = sizes;
  const bool transposed = args.form == MatmulForm::nt;
  // Rows that are packed at a time: some 16 MiB.
  const int64_t most_rows =
      std::max<int64_t>(512, (int64_t{1} << 22) / (ceil_div(K, kDepth) * kLeftStride));
  const Scratch left(context.scratch, ceil_div(K, kDepth) * kLeftStride * std::min(M, most_rows));
  for (int64_t m0 = 0; m0 < M; m0 += most_rows) {
    const int64_t rows = std::min(most_rows, M - m0);
    pack_left(context, a, args.form, sizes, m0, rows, left.data());
    const Cut cut = cut_result(rows, N, K);
    const int64_t row_tasks = ceil_div(rows, cut.rows);
    const int64_t width = HWY_DYNAMIC_DISPATCH(TileColumns)();
    context.pool.run(row_tasks * ceil_div(N, cut.columns), [&, N = N, K = K](int64_t task) {
      const int64_t m = task % row_tasks * cut.rows;
      const int64_t n = task / row_tasks * cut.columns;
      PackedProduct p{};
      p.M = std::min(cut.rows, rows - m);
      p.N = std::min(cut.columns, N - n);
      p.c = c.data<float>() + (m0 + m) * N + n;
      p.c_stride = N;
      const Scratch right(context.scratch, ceil_div(p.N, width) * width * std::min(K, kDepth));
      p.right = right.data();
      for (int64_t k = 0; k < K; k += kDepth) {
        p.K = std::min(kDepth, K - k);
        p.left = left.data() + (k / kDepth * rows + m) * kLeftStride;
        p.accumulate = args.accumulate || k > 0;
        p.bias = k == 0 && bias != nullptr ? bias + n : nullptr;
        with_elements(b, [&](const auto* weights) {
          pack_right(transposed ? weights + n * K + k : weights + k * N + n, transposed ? K : N,
                     transposed, p.N, p.K, right.data());
        });
        HWY_DYNAMIC_DISPATCH(MultiplyPacked)(p);
      }
    });
  }
}

}  // namespace

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c) {
  const MatmulSizes sizes{c.rows(), c.columns(),
                          args.form == MatmulForm::tn ? a.rows() : a.columns()};
  if (sizes.M == 0 || sizes.N == 0) {
    return;
  }
  const Scratch wide_bias(context.scratch, args.bias != nullptr ? sizes.N : 0);
  const float* bias = nullptr;
  if (args.bias != nullptr) {
    with_elements(*args.bias, [&](const auto* values) {
      std::transform(values, values + sizes.N, wide_bias.data(),
                     [](auto value) { return to_f32(value); });
    });
    bias = wide_bias.data();
  }
  if (sizes.K == 0 || (args.form == MatmulForm::nt && sizes.M <= kFewRows)) {
    multiply_by_dots(context, a, b, args, sizes, bias, c);
  } else {
    multiply_packed(context, a, b, args, sizes, bias, c);
  }
}

void add_column_sums(const Context& context, const Tensor& x, const Tensor& out) {
  const int64_t N = x.columns();
  const int64_t columns = x.elements() < 65536 ? std::max<int64_t>(N, 1) : 256;
  for_ranges(context, N, columns, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(AddRows)
    (x.data<float>() + begin, N, x.rows(), end - begin, out.data<float>() + begin);
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
