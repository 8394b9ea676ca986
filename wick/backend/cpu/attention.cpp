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
#include "wick/backend/cpu/attention_inl.h"

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
    const int64_t transposed = rows > kUntransposedRows ? D * kKeyBlock : 0;
    const Scratch scratch(context.scratch, rows * (2 * D + 2 + kKeyBlock) + transposed);
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
      results.o = block.keys_transposed + transposed;
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
