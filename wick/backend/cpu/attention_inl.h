// The inner loops of attention and of the rotary embedding.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_ATTENTION_INL_H_
#undef WICK_BACKEND_CPU_ATTENTION_INL_H_
#else
#define WICK_BACKEND_CPU_ATTENTION_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include "wick/backend/cpu/product_inl.h"
#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_ATTENTION_SHARED_
#define WICK_BACKEND_CPU_ATTENTION_SHARED_
namespace wick::cpu {

constexpr int64_t kKeyBlock = 64;
constexpr int64_t kQueryBlock = 64;       // of the backward pass
constexpr int64_t kUntransposedRows = 8;  // of scores, from keys as they lie
constexpr float kLowest = -3.0e38F;

struct KeyRange {
  int64_t begin, end;
};

struct AttentionSizes {
  int64_t H, G, D;
};

// A run of tokens: pointers to its first query and first key of the heads in question.
struct RunOfTokens {
  int64_t q_count, k_count;
  AttentionArgs args;

  // The keys that query i sees.
  KeyRange visible(int64_t i) const {
    const int64_t position = k_count - q_count + i;
    const int64_t first = args.window > 0 ? position - args.window + 1 : 0;
    return {first > 0 ? first : 0, args.causal ? position + 1 : k_count};
  }
};

// Rows of scores: row (i - first) * heads + head belongs to query i.
struct QueryRows {
  int64_t first, count, heads;
};

struct ForwardBlock {
  const float *q, *k, *v;  // q: first row's values; k, v: key 0 of the run
  QueryRows rows;
  KeyRange keys;
  float *queries, *scores;    // scratch
  float* keys_transposed;     // scratch, for more than kUntransposedRows
  float *sums, *largest, *o;  // results [rows], [rows], [rows, D], not divided
};

struct BackwardBlock {
  const float *q, *k, *v, *o, *lse, *d_o;  // at the run's first token and the task's head
  float *dq, *dk, *dv;
  int64_t d_key_stride;  // rows of dk and dv
  float* scratch;        // BackwardScratch floats
};

}  // namespace wick::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

HWY_INLINE void copy_scaled(const float* from, float scale, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = scale * from[i];
  }
}

HWY_INLINE void clear(int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = 0;
  }
}

// Hides what the rows must not see of the keys [begin, begin + kKeyBlock): `hidden` replaces it.
HWY_INLINE void mask_block(const RunOfTokens& run, const QueryRows& rows, int64_t begin,
                           int64_t count, float hidden, float* block) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const KeyRange range = run.visible(rows.first + i);
    if (range.begin <= begin && begin + kKeyBlock <= range.end && count == kKeyBlock) {
      continue;
    }
    for (int64_t h = 0; h < rows.heads; ++h) {
      float* row = block + (i * rows.heads + h) * kKeyBlock;
      for (int64_t j = 0; j < kKeyBlock; ++j) {
        if (begin + j < range.begin || begin + j >= range.end || j >= count) {
          row[j] = hidden;
        }
      }
    }
  }
}

// [count keys, D] with rows `stride` apart becomes [D, kKeyBlock]; missing keys are zero.
HWY_INLINE void transpose_keys(const float* keys, int64_t stride, int64_t count, int64_t D,
                               float* to) {
  if (count < kKeyBlock) {
    clear(D * kKeyBlock, to);
  }
  transpose(keys, stride, count, D, to, kKeyBlock);
}

// Scores of a row become weights e^(score - largest); the row's sum and output follow.
HWY_INLINE void fold_row(float* scores, int64_t D, float* largest, float* sum, float* o) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF most = hn::Set(d, *largest);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    most = hn::Max(most, hn::LoadU(d, scores + j));
  }
  const float top = max_of(d, most);
  if (top > *largest) {
    const VF drop = exp(d, hn::Set(d, *largest - top));
    const float factor = hn::GetLane(drop);
    *largest = top;
    *sum *= factor;
    for (int64_t i = 0; i < D; ++i) {
      o[i] *= factor;
    }
  }
  const VF shift = hn::Set(d, top);
  VF total = hn::Zero(d);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    const VF weight = exp(d, hn::Sub(hn::LoadU(d, scores + j), shift));
    hn::StoreU(weight, d, scores + j);
    total = hn::Add(total, weight);
  }
  *sum += sum_of(d, total);
}

// Scores [rows, kKeyBlock] of few rows with the keys from `first` on, as they lie: to transpose
// them would write, and fetch first, as many lines again. The keys come from memory, since a
// model's weights have passed through the caches between two tokens: the next ones, and the values
// of these, are asked for meanwhile. What is beyond `count` keys is for mask_block().
HWY_INLINE void score_few_rows(const ForwardBlock& block, int64_t rows, int64_t first,
                               int64_t count, const AttentionSizes& sizes) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t D = sizes.D;
  const int64_t stride = sizes.G * D;
  const int64_t bytes = D * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kKeys = 4;
  constexpr int64_t kAhead = 2 * kKeys;
  const float* keys = block.k + first * stride;
  const auto ask = [&](const float* all, int64_t begin) HWY_ATTR {
    for (int64_t j = begin; j < HWY_MIN(begin + kKeys, block.keys.end); ++j) {
      ask_ahead(reinterpret_cast<uintptr_t>(all + j * stride), bytes);
    }
  };
  for (int64_t j = 0; j < count; j += kKeys) {
    ask(block.k, first + j + kAhead);
    ask(block.v, first + j);
    const float* key[kKeys];
    WICK_UNROLL for (int64_t i = 0; i < kKeys; ++i) {
      key[i] = keys + HWY_MIN(j + i, count - 1) * stride;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const float* q = block.queries + row * D;
      VF sum[kKeys] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      int64_t at = 0;
      for (; at + lanes <= D; at += lanes) {
        const VF of_q = hn::LoadU(d, q + at);
        WICK_UNROLL for (int64_t i = 0; i < kKeys; ++i) {
          sum[i] = hn::MulAdd(of_q, hn::LoadU(d, key[i] + at), sum[i]);
        }
      }
      if (at < D) {
        const size_t rest = D - at;
        const VF of_q = load_part(d, q + at, rest);
        WICK_UNROLL for (int64_t i = 0; i < kKeys; ++i) {
          sum[i] = hn::MulAdd(of_q, load_part(d, key[i] + at, rest), sum[i]);
        }
      }
      store_sums(d, sum[0], sum[1], sum[2], sum[3], block.scores + row * kKeyBlock + j);
    }
  }
}

void AttendBlock(const ForwardBlock& block, const RunOfTokens& run, const AttentionSizes& sizes) {
  const int64_t D = sizes.D;
  const int64_t key_stride = sizes.G * D;
  const int64_t rows = block.rows.count * block.rows.heads;
  for (int64_t i = 0; i < block.rows.count; ++i) {
    copy_scaled(block.q + i * sizes.H * D, run.args.scale, block.rows.heads * D,
                block.queries + i * block.rows.heads * D);
  }
  for (int64_t row = 0; row < rows; ++row) {
    block.sums[row] = 0;
    block.largest[row] = kLowest;
  }
  clear(rows * D, block.o);
  for (int64_t j = block.keys.begin; j < block.keys.end; j += kKeyBlock) {
    const int64_t count = HWY_MIN(kKeyBlock, block.keys.end - j);
    if (rows <= kUntransposedRows) {
      score_few_rows(block, rows, j, count, sizes);
    } else {
      transpose_keys(block.k + j * key_stride, key_stride, count, D, block.keys_transposed);
      block_product({block.queries, D, 1}, {block.keys_transposed, kKeyBlock}, {rows, kKeyBlock, D},
                    {block.scores, kKeyBlock, false});
    }
    mask_block(run, block.rows, j, count, -HUGE_VALF, block.scores);
    for (int64_t row = 0; row < rows; ++row) {
      fold_row(block.scores + row * kKeyBlock, D, block.largest + row, block.sums + row,
               block.o + row * D);
    }
    block_product({block.scores, kKeyBlock, 1}, {block.v + j * key_stride, key_stride},
                  {rows, D, count}, {block.o, D, true});
  }
}

HWY_INLINE float dot(const float* a, const float* b, int64_t count) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  }
  float total = sum_of(d, sum);
  for (; i < count; ++i) {
    total += a[i] * b[i];
  }
  return total;
}

// p = e^(p - lse) and ds = p (dp - delta), for the rows of one block.
HWY_INLINE void softmax_gradient(const float* lse, const float* delta, int64_t rows, float* p,
                                 float* ds) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = 0; row < rows; ++row) {
    const VF shift = hn::Set(d, lse[row]);
    const VF mean = hn::Set(d, delta[row]);
    for (int64_t j = row * kKeyBlock; j < (row + 1) * kKeyBlock; j += lanes) {
      const VF weight = exp(d, hn::Sub(hn::LoadU(d, p + j), shift));
      hn::StoreU(weight, d, p + j);
      const VF change = hn::Sub(hn::LoadU(d, ds + j), mean);
      hn::StoreU(hn::Mul(weight, change), d, ds + j);
    }
  }
}

// Floats of scratch for one task of the backward pass.
int64_t BackwardScratch(int64_t q_count, int64_t D) {
  return q_count * (2 * D + 2) + 2 * D * kKeyBlock + 2 * kQueryBlock * kKeyBlock;
}

void AttendBackward(const BackwardBlock& block, const RunOfTokens& run,
                    const AttentionSizes& sizes) {
  const int64_t D = sizes.D;
  const int64_t Q = run.q_count;
  const int64_t q_stride = sizes.H * D;
  const int64_t k_stride = sizes.G * D;
  float* q = block.scratch;  // scaled and contiguous
  float* d_o = q + Q * D;
  float* lse = d_o + Q * D;
  float* delta = lse + Q;
  float* k_transposed = delta + Q;
  float* v_transposed = k_transposed + D * kKeyBlock;
  float* p = v_transposed + D * kKeyBlock;
  float* ds = p + kQueryBlock * kKeyBlock;
  for (int64_t i = 0; i < Q; ++i) {
    copy_scaled(block.q + i * q_stride, run.args.scale, D, q + i * D);
    copy_scaled(block.d_o + i * q_stride, 1.0F, D, d_o + i * D);
    lse[i] = block.lse[i * sizes.H];
    delta[i] = dot(block.o + i * q_stride, d_o + i * D, D);
    clear(D, block.dq + i * q_stride);
  }
  const int64_t offset = run.k_count - Q;  // from a query's number to its key position
  for (int64_t j = 0; j < run.k_count; j += kKeyBlock) {
    const int64_t keys = HWY_MIN(kKeyBlock, run.k_count - j);
    const float* k = block.k + j * k_stride;
    transpose_keys(k, k_stride, keys, D, k_transposed);
    transpose_keys(block.v + j * k_stride, k_stride, keys, D, v_transposed);
    float* dk = block.dk + j * block.d_key_stride;
    float* dv = block.dv + j * block.d_key_stride;
    const int64_t first = run.args.causal ? HWY_MAX(0, j - offset) : 0;
    const int64_t last =
        run.args.window > 0 ? HWY_MIN(Q, j + keys - 1 + run.args.window - offset) : Q;
    bool accumulate = false;
    for (int64_t i = first; i < last; i += kQueryBlock) {
      const int64_t rows = HWY_MIN(kQueryBlock, last - i);
      const BlockSize square{rows, kKeyBlock, D};
      block_product({q + i * D, D, 1}, {k_transposed, kKeyBlock}, square, {p, kKeyBlock, false});
      block_product({d_o + i * D, D, 1}, {v_transposed, kKeyBlock}, square, {ds, kKeyBlock, false});
      mask_block(run, {i, rows, 1}, j, keys, -HUGE_VALF, p);
      softmax_gradient(lse + i, delta + i, rows, p, ds);
      // ds lacks the scale: q has it for dk, and dq gets it at the end.
      const BlockSize of_keys{keys, D, rows};
      block_product({p, 1, kKeyBlock}, {d_o + i * D, D}, of_keys,
                    {dv, block.d_key_stride, accumulate});
      block_product({ds, 1, kKeyBlock}, {q + i * D, D}, of_keys,
                    {dk, block.d_key_stride, accumulate});
      block_product({ds, kKeyBlock, 1}, {k, k_stride}, {rows, D, keys},
                    {block.dq + i * q_stride, q_stride, true});
      accumulate = true;
    }
    if (!accumulate) {  // keys that no query sees
      for (int64_t row = 0; row < keys; ++row) {
        clear(D, dk + row * block.d_key_stride);
        clear(D, dv + row * block.d_key_stride);
      }
    }
  }
  for (int64_t i = 0; i < Q; ++i) {
    copy_scaled(block.dq + i * q_stride, run.args.scale, D, block.dq + i * q_stride);
  }
}

// Rotates the heads of one token.
void RotateHeads(const float* x, const float* table, float sign, int64_t H, int64_t D, int64_t R,
                 float* y) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t half = R / 2;
  for (int64_t h = 0; h < H; ++h, x += D, y += D) {
    int64_t i = 0;
    for (; i + lanes <= half; i += lanes) {
      const VF cosine = hn::LoadU(d, table + i);
      const VF sine = hn::Mul(hn::LoadU(d, table + half + i), hn::Set(d, sign));
      const VF first = hn::LoadU(d, x + i);
      const VF second = hn::LoadU(d, x + half + i);
      hn::StoreU(hn::NegMulAdd(second, sine, hn::Mul(first, cosine)), d, y + i);
      hn::StoreU(hn::MulAdd(first, sine, hn::Mul(second, cosine)), d, y + half + i);
    }
    for (; i < half; ++i) {
      const float sine = sign * table[half + i];
      const float first = x[i];
      const float second = x[half + i];
      y[i] = first * table[i] - second * sine;
      y[half + i] = second * table[i] + first * sine;
    }
    for (i = R; i < D; ++i) {
      y[i] = x[i];
    }
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
