// Attention by blocks with a running softmax (Dao et al., "FlashAttention", 2022): the scores of a
// block of queries and a block of keys never leave the cache.
//
// Forward, a task is a block of queries of all heads that share a key head (and, when the queries
// are few and the keys many, a part of the keys). Backward, a task is a head of a run of tokens.
#include "wick/backend/cpu/attention.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/attention.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "wick/backend/cpu/product_inl.h"
#include "wick/backend/cpu/simd_inl.h"

#ifndef WICK_BACKEND_CPU_ATTENTION_SHARED_
#define WICK_BACKEND_CPU_ATTENTION_SHARED_
namespace wick::cpu {

constexpr int64_t kKeyBlock = 64;
constexpr int64_t kQueryBlock = 64;  // of the backward pass
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
  float *queries, *scores, *keys_transposed;  // scratch
  float *sums, *largest, *o;                  // results [rows], [rows], [rows, D], not divided
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
    transpose_keys(block.k + j * key_stride, key_stride, count, D, block.keys_transposed);
    block_product({block.queries, D, 1}, {block.keys_transposed, kKeyBlock}, {rows, kKeyBlock, D},
                  {block.scores, kKeyBlock, false});
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

#if HWY_ONCE

#include <cmath>
#include <cstring>
#include <vector>

namespace wick::cpu {

HWY_EXPORT(AttendBlock);
HWY_EXPORT(BackwardScratch);
HWY_EXPORT(AttendBackward);
HWY_EXPORT(RotateHeads);

namespace {

struct Span {
  int64_t q_begin, q_count, k_begin, k_count;
};

Span span_at(const Tensor& spans, int64_t s) {
  const int32_t* row = spans.data<int32_t>() + 4 * s;
  return {row[0], row[1], row[2], row[3]};
}

bool covers_all(const Tensor& spans, int64_t queries, int64_t keys) {
  for (int64_t s = 0; s < spans.rows(); ++s) {
    queries -= span_at(spans, s).q_count;
    keys -= span_at(spans, s).k_count;
  }
  return queries == 0 && keys == 0;
}

// A forward task: some queries of a run, one key head, some keys.
struct ForwardTask {
  Span span;
  int64_t g;
  int64_t first, count;  // queries of the run
  KeyRange keys;
  int64_t part, parts;  // of the keys these queries see
  int64_t partial_row;  // where its partial results start, when parts > 1
};

struct ForwardPlan {
  std::vector<ForwardTask> tasks;
  int64_t partial_rows = 0;
};

ForwardPlan plan_forward(const Tensor& spans, const AttentionArgs& args,
                         const AttentionSizes& sizes) {
  constexpr int64_t kRows = 96;         // scores of a task's rows fit into the second cache
  constexpr int64_t kKeysOfPart = 512;  // a few new queries over many keys are split by keys
  const int64_t heads = sizes.H / sizes.G;
  const int64_t queries = std::max<int64_t>(1, kRows / heads);
  ForwardPlan plan;
  for (int64_t s = 0; s < spans.rows(); ++s) {
    const Span span = span_at(spans, s);
    const RunOfTokens run{span.q_count, span.k_count, args};
    // The last queries of a causal run see the most keys; they start first.
    for (int64_t block = (span.q_count + queries - 1) / queries - 1; block >= 0; --block) {
      const int64_t first = block * queries;
      const int64_t count = std::min(queries, span.q_count - first);
      const KeyRange keys{run.visible(first).begin, run.visible(first + count - 1).end};
      const bool split = span.q_count <= 8;
      const int64_t step = split ? kKeysOfPart : std::max<int64_t>(1, keys.end - keys.begin);
      const int64_t parts = std::max<int64_t>(1, (keys.end - keys.begin + step - 1) / step);
      for (int64_t g = 0; g < sizes.G; ++g) {
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t begin = keys.begin + part * step;
          plan.tasks.push_back({span,
                                g,
                                first,
                                count,
                                {begin, std::min(keys.end, begin + step)},
                                part,
                                parts,
                                plan.partial_rows});
          plan.partial_rows += parts > 1 ? count * heads : 0;
        }
      }
    }
  }
  return plan;
}

// Divides by the sums and writes the rows of a task. With more parts than one, the results of the
// parts lie behind each other and are brought to one largest score first.
struct RowResults {
  float *sums, *largest, *o;
};

void finish_rows(const ForwardTask& task, const AttentionSizes& sizes, const RowResults& results,
                 const Tensor& o, const Tensor& lse) {
  const int64_t heads = sizes.H / sizes.G;
  const int64_t rows = task.count * heads;
  for (int64_t row = 0; row < rows; ++row) {
    float largest = kLowest;
    for (int64_t part = 0; part < task.parts; ++part) {
      largest = std::max(largest, results.largest[part * rows + row]);
    }
    float sum = 0;
    float* total = results.o + row * sizes.D;
    for (int64_t part = 0; part < task.parts; ++part) {
      const int64_t at = part * rows + row;
      const float weight = task.parts > 1 ? std::exp(results.largest[at] - largest) : 1.0F;
      sum += weight * results.sums[at];
      for (int64_t i = 0; task.parts > 1 && i < sizes.D; ++i) {
        const float value = weight * results.o[at * sizes.D + i];
        total[i] = part == 0 ? value : total[i] + value;
      }
    }
    const int64_t to =
        (task.span.q_begin + task.first + row / heads) * sizes.H + task.g * heads + row % heads;
    const float inverse = sum > 0 || std::isnan(sum) ? 1.0F / sum : 0.0F;
    for (int64_t i = 0; i < sizes.D; ++i) {
      o.data<float>()[to * sizes.D + i] = total[i] * inverse;
    }
    if (lse) {
      lse.data<float>()[to] = largest + std::log(sum);
    }
  }
}

}  // namespace

void attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& spans, const AttentionArgs& args, const Tensor& o, const Tensor& lse) {
  const AttentionSizes sizes{q.dim(1), k.dim(1), q.dim(2)};
  const int64_t D = sizes.D;
  const int64_t heads = sizes.H / sizes.G;
  const ForwardPlan plan = plan_forward(spans, args, sizes);
  const Scratch partial(context.scratch, plan.partial_rows * (D + 2));
  const auto partial_results = [&](int64_t row) {
    float* sums = partial.data();
    float* largest = sums + plan.partial_rows;
    return RowResults{sums + row, largest + row, largest + plan.partial_rows + row * D};
  };
  context.pool.run(static_cast<int64_t>(plan.tasks.size()), [&](int64_t i) {
    const ForwardTask& task = plan.tasks[i];
    const int64_t rows = task.count * heads;
    const Scratch scratch(context.scratch, rows * (2 * D + 2 + kKeyBlock) + D * kKeyBlock);
    ForwardBlock block{};
    block.q = q.data<float>() + ((task.span.q_begin + task.first) * sizes.H + task.g * heads) * D;
    block.k = k.data<float>() + (task.span.k_begin * sizes.G + task.g) * D;
    block.v = v.data<float>() + (task.span.k_begin * sizes.G + task.g) * D;
    block.rows = {task.first, task.count, heads};
    block.keys = task.keys;
    block.queries = scratch.data();
    block.scores = block.queries + rows * D;
    block.keys_transposed = block.scores + rows * kKeyBlock;
    RowResults results{};
    if (task.parts > 1) {
      results = partial_results(task.partial_row);
    } else {
      results.o = block.keys_transposed + D * kKeyBlock;
      results.sums = results.o + rows * D;
      results.largest = results.sums + rows;
    }
    block.sums = results.sums;
    block.largest = results.largest;
    block.o = results.o;
    const RunOfTokens run{task.span.q_count, task.span.k_count, args};
    HWY_DYNAMIC_DISPATCH(AttendBlock)(block, run, sizes);
    if (task.parts == 1) {
      finish_rows(task, sizes, results, o, lse);
    }
  });
  if (plan.partial_rows > 0) {
    context.pool.run(static_cast<int64_t>(plan.tasks.size()), [&](int64_t i) {
      const ForwardTask& task = plan.tasks[i];
      if (task.parts > 1 && task.part == 0) {
        finish_rows(task, sizes, partial_results(task.partial_row), o, lse);
      }
    });
  }
}

void attention_backward(const Context& context, const AttentionResults& forward,
                        const Tensor& spans, const AttentionArgs& args, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv) {
  const AttentionSizes sizes{forward.q.dim(1), forward.k.dim(1), forward.q.dim(2)};
  const auto [H, G, D] = sizes;
  const int64_t heads = H / G;
  const int64_t Tk = forward.k.dim(0);
  // Heads that share a key head each sum into keys of their own, added up in their order at the
  // end.
  const bool shared = heads > 1;
  const Scratch partial(context.scratch, shared ? 2 * H * Tk * D : 0);
  if (!covers_all(spans, forward.q.dim(0), Tk)) {
    for (const Tensor* gradient : {&dq, &dk, &dv}) {
      std::fill_n(gradient->data<float>(), gradient->elements(), 0.0F);
    }
    std::fill_n(partial.data(), shared ? 2 * H * Tk * D : 0, 0.0F);
  }
  context.pool.run(spans.rows() * H, [&, H = H, G = G, D = D](int64_t task) {
    const Span span = span_at(spans, task / H);
    const int64_t h = task % H;
    const int64_t q_at = (span.q_begin * H + h) * D;
    const int64_t k_at = (span.k_begin * G + h / heads) * D;
    const Scratch scratch(context.scratch, HWY_DYNAMIC_DISPATCH(BackwardScratch)(span.q_count, D));
    BackwardBlock block{};
    block.q = forward.q.data<float>() + q_at;
    block.k = forward.k.data<float>() + k_at;
    block.v = forward.v.data<float>() + k_at;
    block.o = forward.o.data<float>() + q_at;
    block.lse = forward.lse.data<float>() + span.q_begin * H + h;
    block.d_o = forward.d_o.data<float>() + q_at;
    block.dq = dq.data<float>() + q_at;
    const int64_t own = (h * Tk + span.k_begin) * D;
    block.dk = shared ? partial.data() + own : dk.data<float>() + k_at;
    block.dv = shared ? partial.data() + H * Tk * D + own : dv.data<float>() + k_at;
    block.d_key_stride = shared ? D : G * D;
    block.scratch = scratch.data();
    HWY_DYNAMIC_DISPATCH(AttendBackward)(block, {span.q_count, span.k_count, args}, sizes);
  });
  if (!shared) {
    return;
  }
  for_ranges(context, Tk, rows_of(16384, H * D),
             [&, G = G, D = D, H = H](int64_t begin, int64_t end) {
               for (const Tensor* gradient : {&dk, &dv}) {
                 const float* parts = partial.data() + (gradient == &dv ? H * Tk * D : 0);
                 for (int64_t t = begin; t < end; ++t) {
                   for (int64_t g = 0; g < G; ++g) {
                     float* to = gradient->data<float>() + (t * G + g) * D;
                     std::copy_n(parts + (g * heads * Tk + t) * D, D, to);
                     for (int64_t h = g * heads + 1; h < (g + 1) * heads; ++h) {
                       const float* from = parts + (h * Tk + t) * D;
                       for (int64_t i = 0; i < D; ++i) {
                         to[i] += from[i];
                       }
                     }
                   }
                 }
               }
             });
}

void kv_append(const Tensor& x, const Tensor& slots, const Tensor& cache) {
  const int64_t row_bytes = x.columns() * x.dim(1) * static_cast<int64_t>(sizeof(float));
  for (int64_t t = 0; t < x.dim(0); ++t) {
    std::memcpy(static_cast<std::byte*>(cache.address()) + slots.data<int32_t>()[t] * row_bytes,
                static_cast<const std::byte*>(x.address()) + t * row_bytes, row_bytes);
  }
}

void rope(const Context& context, const Tensor& x, const Tensor& positions, const Tensor& table,
          RopeDirection direction, const Tensor& y) {
  const int64_t H = x.dim(1);
  const int64_t D = x.dim(2);
  const int64_t R = table.columns();
  const float sign = direction == RopeDirection::forward ? 1.0F : -1.0F;
  for_ranges(context, x.dim(0), rows_of(16384, H * D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* angles = table.data<float>() + positions.data<int32_t>()[t] * R;
      HWY_DYNAMIC_DISPATCH(RotateHeads)
      (x.data<float>() + t * H * D, angles, sign, H, D, R, y.data<float>() + t * H * D);
    }
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
