// Linear layers over a few rows: tasks of weight rows, each layer's adapter in the same tasks.
#include "wick/backend/cpu/few_rows.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/few_rows.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "wick/backend/cpu/few_rows_inl.h"

#if HWY_ONCE

#include <algorithm>
#include <array>
#include <vector>

#include "wick/backend/cpu/lora.h"

namespace wick::cpu {

HWY_EXPORT(ArrangeLeft);
HWY_EXPORT(MultiplyFewRowsfloat);
HWY_EXPORT(MultiplyFewRowsBf16);
HWY_EXPORT(MultiplyFewRowsF16);

namespace {

// Overloads by the stored type, for with_elements.
void multiply(const FewRowsProduct& p, const float* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsfloat)(p, b);
}
void multiply(const FewRowsProduct& p, const Bf16* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsBf16)(p, b);
}
void multiply(const FewRowsProduct& p, const F16* b) {
  HWY_DYNAMIC_DISPATCH(MultiplyFewRowsF16)(p, b);
}

// Columns [begin, end) of the output of one layer.
struct ColumnTask {
  const LinearTerm* term;
  const float* bias;  // of the whole layer, or null
  int64_t begin, end;
};

bool is_bf16(const Tensor& weight) {
  return weight.dtype() == DType::bf16;
}

// Ranks [begin, end) of the S of one layer.
struct RankTask {
  const LinearTerm* term;
  int64_t begin, end;
};

// The adapter of row t, null if it has none.
const LoraFactors* adapter_of(const LinearTerm& term, int64_t t) {
  if (!term.row_adapter) {
    return &term.adapters[0];
  }
  const int32_t chosen = term.row_adapter.data<int32_t>()[t];
  return chosen < 0 ? nullptr : &term.adapters[chosen];
}

void shrink(const Tensor& x, const RankTask& task) {
  const Tensor& s = task.term->s;
  const auto rows_of_one = [&](const LoraFactors& adapter, int64_t first, int64_t rows) {
    const int64_t end = std::min(task.end, adapter.a.rows());
    if (task.begin < end) {
      lora_shrink(x.data<float>() + first * x.columns(), rows, adapter, task.begin, end,
                  s.data<float>() + first * s.columns(), s.columns());
    }
  };
  if (!task.term->row_adapter) {
    rows_of_one(task.term->adapters[0], 0, x.rows());
    return;
  }
  for (int64_t t = 0; t < x.rows(); ++t) {
    if (const LoraFactors* adapter = adapter_of(*task.term, t)) {
      rows_of_one(*adapter, t, 1);
    }
  }
}

// x as the products with weights of their types read it.
class ArrangedLeft {
 public:
  ArrangedLeft(const Context& context, const Tensor& x, std::span<const LinearTerm> terms)
      : places_(context.scratch, 2 * x.rows() * left_stride(x.columns())),
        for_others_(places_.data() + x.rows() * left_stride(x.columns())) {
    const auto arrange = [&](bool split, float* to) {
      if (std::ranges::any_of(terms,
                              [&](const auto& term) { return is_bf16(term.weight) == split; })) {
        HWY_DYNAMIC_DISPATCH(ArrangeLeft)(x.data<float>(), x.rows(), x.columns(), split, to);
      }
    };
    arrange(true, places_.data());
    arrange(false, for_others_);
  }

  const float* of(const Tensor& weight) const {
    return is_bf16(weight) ? places_.data() : for_others_;
  }

 private:
  Scratch places_;
  float* for_others_;
};

void multiply_columns(const Tensor& x, const ArrangedLeft& left, bool accumulate,
                      const ColumnTask& task) {
  const LinearTerm& term = *task.term;
  const bool adapted = !term.adapters.empty();
  std::array<RowAdapter, kFewRows> adapters{};
  for (int64_t t = 0; adapted && t < x.rows(); ++t) {
    if (const LoraFactors* adapter = adapter_of(term, t)) {
      adapters[t] = {adapter->b.data<float>(), term.s.data<float>() + t * term.s.columns(),
                     adapter->a.rows(), adapter->scaling};
    }
  }
  with_elements(term.weight, [&](const auto* weights) {
    multiply({left.of(term.weight), left_stride(x.columns()), task.bias, x.rows(), term.y.columns(),
              x.columns(), task.begin, task.end, accumulate, term.y.data<float>(),
              adapted ? adapters.data() : nullptr},
             weights);
  });
}

template <class Task, class Body>
void run_tasks(const Context& context, bool serial, const std::vector<Task>& tasks,
               const Body& body) {
  if (serial) {
    for (const Task& task : tasks) {
      body(task);
    }
    return;
  }
  context.pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { body(tasks[i]); });
}

void run_shrinks(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  constexpr int64_t kRanks = 4;
  std::vector<RankTask> tasks;
  for (const LinearTerm& term : terms) {
    int64_t ranks = 0;
    for (const LoraFactors& adapter : term.adapters) {
      ranks = std::max(ranks, adapter.a.rows());
    }
    for (int64_t r = 0; r < ranks; r += kRanks) {
      tasks.push_back({&term, r, r + kRanks});
    }
  }
  // The adapters come from memory too, so a thread less is felt earlier than by their arithmetic.
  const int64_t values = static_cast<int64_t>(tasks.size()) * kRanks * x.columns();
  run_tasks(context, values < kSerialProducts / 8, tasks,
            [&](const RankTask& task) { shrink(x, task); });
}

void run_columns(const Context& context, const Tensor& x, bool accumulate,
                 std::span<const LinearTerm> terms) {
  const int64_t K = x.columns();
  int64_t biases = 0;
  for (const LinearTerm& term : terms) {
    biases += term.bias ? term.y.columns() : 0;
  }
  const Scratch wide_biases(context.scratch, biases);
  float* bias = wide_biases.data();
  const ArrangedLeft left(context, x, terms);
  // Tasks of whole weight rows, some 64k weights each.
  const int64_t columns = std::max<int64_t>(4, rows_of(65536, K) / 4 * 4);
  std::vector<ColumnTask> tasks;
  int64_t products = 0;
  for (const LinearTerm& term : terms) {
    const int64_t N = term.y.columns();
    if (term.bias) {
      widen(term.bias, bias);
    }
    for (int64_t n = 0; n < N; n += columns) {
      tasks.push_back({&term, term.bias ? bias : nullptr, n, std::min(N, n + columns)});
    }
    bias += term.bias ? N : 0;
    products += x.rows() * N * K;
  }
  run_tasks(context, products < kSerialProducts, tasks,
            [&](const ColumnTask& task) { multiply_columns(x, left, accumulate, task); });
}

}  // namespace

void multiply_few_rows(const Context& context, const Tensor& a, const Tensor& b,
                       const MatmulArgs& args, const Tensor& c) {
  LinearTerm term;
  term.weight = b;
  term.y = c;
  if (args.bias != nullptr) {
    term.bias = *args.bias;
  }
  run_columns(context, a, args.accumulate, std::span(&term, 1));
}

void linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  run_shrinks(context, x, terms);
  run_columns(context, x, false, terms);
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
