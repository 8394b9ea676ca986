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
#include <atomic>
#include <vector>

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

// The columns of all layers, one after the other by fours, dealt out to threads. A thread's share
// is read as one stream: each task is an end to it, where memory stands still for some 0.2 us. So
// tasks are large at first, and small at the end of a share, where whoever is done helps.
class ColumnTasks {
 public:
  static constexpr int64_t kColumns = 4;

  ColumnTasks(std::span<const LinearTerm> terms, int64_t K, int threads) {
    int64_t fours = 0;
    for (const LinearTerm& term : terms) {
      fours += ceil_div(term.y.columns(), kColumns);
    }
    constexpr int64_t kMostWeights = 1 << 18;
    constexpr int64_t kLeastWeights = 1 << 14;
    const int64_t most = rows_of(kMostWeights, kColumns * K);
    const int64_t least = rows_of(kLeastWeights, kColumns * K);
    share_ = ceil_div(fours, threads);
    threads_ = threads;
    for (int64_t left = share_; left > 0; left = share_ - ends_.back()) {
      ends_.push_back(share_ - left + std::min(left, std::clamp(left * 2 / 3, least, most)));
    }
  }

  // Each thread's share has as many.
  int64_t count() const { return threads_ * static_cast<int64_t>(ends_.size()); }

  // Calls body(layer, begin, end) for the columns of each layer that task i has.
  template <class Body>
  void columns_of(int64_t i, std::span<const LinearTerm> terms, const Body& body) const {
    const auto tasks = static_cast<int64_t>(ends_.size());
    const int64_t of_share = i % tasks;
    const int64_t first = i / tasks * share_;
    int64_t begin = first + (of_share == 0 ? 0 : ends_[of_share - 1]);
    int64_t end = first + ends_[of_share];
    for (size_t layer = 0; layer < terms.size(); ++layer) {
      const int64_t N = terms[layer].y.columns();
      const int64_t fours = ceil_div(N, kColumns);
      const int64_t from = std::max<int64_t>(begin, 0);
      if (from < std::min(end, fours)) {
        body(layer, from * kColumns, std::min(N, end * kColumns));
      }
      begin -= fours;
      end -= fours;
    }
  }

 private:
  int64_t threads_, share_;
  std::vector<int64_t> ends_;  // of the tasks of a share
};

bool is_bf16(const Tensor& matrix) {
  return matrix.dtype() == DType::bf16;
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

// x as the products with matrices of their types read it.
class ArrangedLeft {
 public:
  ArrangedLeft(const Context& context, const Tensor& x, std::span<const LinearTerm> terms)
      : places_(context.scratch, 2 * x.rows() * left_stride(x.columns())),
        for_others_(places_.data() + x.rows() * left_stride(x.columns())) {
    const auto arrange = [&](bool split, float* to) {
      const auto reads_it = [split](const LinearTerm& term) {
        return is_bf16(term.weight) == split ||
               std::ranges::any_of(term.adapters, [split](const LoraFactors& adapter) {
                 return is_bf16(adapter.a) == split;
               });
      };
      if (std::ranges::any_of(terms, reads_it)) {
        HWY_DYNAMIC_DISPATCH(ArrangeLeft)(x.data<float>(), x.rows(), x.columns(), split, to);
      }
    };
    arrange(true, places_.data());
    arrange(false, for_others_);
  }

  const float* of(const Tensor& matrix) const {
    return is_bf16(matrix) ? places_.data() : for_others_;
  }

 private:
  Scratch places_;
  float* for_others_;
};

void shrink(const Tensor& x, const ArrangedLeft& left, const RankTask& task) {
  const Tensor& s = task.term->s;
  const int64_t stride = left_stride(x.columns());
  const auto rows_of_one = [&](const LoraFactors& adapter, int64_t first, int64_t rows) {
    const int64_t end = std::min(task.end, adapter.a.rows());
    if (task.begin >= end) {
      return;
    }
    with_elements(adapter.a, [&](const auto* a) {
      multiply(
          {left.of(adapter.a) + first * stride, stride, nullptr, rows, s.columns(), x.columns(),
           task.begin, end, false, s.data<float>() + first * s.columns(), nullptr},
          a);
    });
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

// Columns [begin, end) of the output of a layer; bias: of the whole layer, or null.
void multiply_columns(const Tensor& x, const ArrangedLeft& left, bool accumulate,
                      const LinearTerm& term, const float* bias, int64_t begin, int64_t end) {
  const bool adapted = !term.adapters.empty();
  std::array<RowAdapter, kFewRows> adapters{};
  for (int64_t t = 0; adapted && t < x.rows(); ++t) {
    if (const LoraFactors* adapter = adapter_of(term, t)) {
      adapters[t] = {adapter->b.address(), is_bf16(adapter->b),
                     term.s.data<float>() + t * term.s.columns(), adapter->a.rows(),
                     adapter->scaling};
    }
  }
  with_elements(term.weight, [&](const auto* weights) {
    multiply({left.of(term.weight), left_stride(x.columns()), bias, x.rows(), term.y.columns(),
              x.columns(), begin, end, accumulate, term.y.data<float>(),
              adapted ? adapters.data() : nullptr},
             weights);
  });
}

// S of all layers, made by whoever comes to need it: the threads of the run of y do what is left to
// do of it first. A run of its own would be as long as S takes, and memory would stand still at its
// end and beginning.
class Shrinks {
 public:
  Shrinks(const Tensor& x, const ArrangedLeft& left, std::span<const LinearTerm> terms)
      : x_(x), left_(left) {
    constexpr int64_t kRanks = 4;
    for (const LinearTerm& term : terms) {
      int64_t ranks = 0;
      for (const LoraFactors& adapter : term.adapters) {
        ranks = std::max(ranks, adapter.a.rows());
      }
      for (int64_t r = 0; r < ranks; r += kRanks) {
        tasks_.push_back({&term, r, r + kRanks});
      }
    }
  }

  // To be called by any thread; S is there when it returns.
  void finish() {
    const auto count = static_cast<int64_t>(tasks_.size());
    if (done_.load(std::memory_order_acquire) == count) {
      return;
    }
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) {
      shrink(x_, left_, tasks_[i]);
      done_.fetch_add(1, std::memory_order_release);
    }
    // What is not done another thread is doing.
    spin_until([&] { return done_.load(std::memory_order_acquire) == count; });
  }

 private:
  const Tensor& x_;
  const ArrangedLeft& left_;
  std::vector<RankTask> tasks_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
};

void run_columns(const Context& context, const Tensor& x, const ArrangedLeft& left, bool accumulate,
                 std::span<const LinearTerm> terms) {
  int64_t weights = 0;
  int64_t biases = 0;
  for (const LinearTerm& term : terms) {
    weights += term.y.columns() * x.columns();
    biases += term.bias ? term.y.columns() : 0;
  }
  const Scratch wide_biases(context.scratch, biases);
  std::vector<const float*> bias_of(terms.size());
  float* bias = wide_biases.data();
  for (size_t i = 0; i < terms.size(); ++i) {
    if (terms[i].bias) {
      widen(terms[i].bias, bias);
      bias_of[i] = bias;
      bias += terms[i].y.columns();
    }
  }
  const bool serial = x.rows() * weights < kSerialProducts;
  const ColumnTasks tasks(terms, x.columns(), serial ? 1 : context.pool.threads());
  Shrinks shrinks(x, left, terms);
  const auto run = [&](int64_t i) {
    shrinks.finish();
    tasks.columns_of(i, terms, [&](size_t layer, int64_t begin, int64_t end) {
      multiply_columns(x, left, accumulate, terms[layer], bias_of[layer], begin, end);
    });
  };
  if (serial) {
    for (int64_t i = 0; i < tasks.count(); ++i) {
      run(i);
    }
  } else {
    context.pool.run(tasks.count(), run);
  }
  shrinks.finish();  // where there is no y
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
  const std::span terms(&term, 1);
  run_columns(context, a, ArrangedLeft(context, a, terms), args.accumulate, terms);
}

void linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  const ArrangedLeft left(context, x, terms);
  run_columns(context, x, left, false, terms);
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
