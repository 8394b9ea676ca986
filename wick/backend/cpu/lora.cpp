// LoRA by three skinny products, each with the low-rank side in registers:
//   shrink  s[t,r]  = scale sum_n x[t,n] w[r,n]      dot products along n
//   expand  y[t,n] += scale sum_r s[t,r] w[r,n]      w in panels, so that they stay in L1
//   collect g[r,n] += scale sum_t s[t,r] x[t,n]      the gradients of A and of B
#include "wick/backend/cpu/lora.h"

#include "wick/backend/cpu/matmul.h"
#include "wick/backend/cpu/narrow.h"
#include "wick/backend/cpu/packed_by_thread.h"
#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/lora.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "wick/backend/cpu/lora_inl.h"

#if HWY_ONCE

#include <vector>

namespace wick::cpu {

HWY_EXPORT(Shrink);
HWY_EXPORT(ShrinkTileRows);
HWY_EXPORT(PanelColumns);
HWY_EXPORT(PackPanels);
HWY_EXPORT(Expand);
HWY_EXPORT(ExpandOnce);
HWY_EXPORT(ExpandOnceRanks);
HWY_EXPORT(ExpandOneRow);
HWY_EXPORT(Collect);
HWY_EXPORT(Transpose);
HWY_EXPORT(TransposeRanks);

namespace {

// Rows of a task: all of them when there is little to do, and no fewer than are worth a thread.
int64_t task_rows(const Context& context, int64_t T, int64_t products_of_a_row) {
  if (T * products_of_a_row < kSerialProducts) {
    return std::max<int64_t>(T, 1);
  }
  const int64_t tile = HWY_DYNAMIC_DISPATCH(ShrinkTileRows)();
  const int64_t least = ceil_div(kSerialProducts / 2, products_of_a_row);
  const int64_t rows = std::max(least, ceil_div(T, context.pool.threads()));
  constexpr int64_t kMostRows = 32;
  return ceil_div(std::min(rows, kMostRows), tile) * tile;
}

int64_t padded(int64_t n) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(PanelColumns)();
  return ceil_div(n, width) * width;
}

// The factors as products of many rows read them: in f32.
class WideFactors {
 public:
  WideFactors(const Context& context, const LoraFactors& adapter)
      : place_(context.scratch,
               adapter.a.dtype() == DType::f32 ? 0 : adapter.a.elements() + adapter.b.elements()) {
    if (adapter.a.dtype() == DType::f32) {
      a = adapter.a.data<float>();
      b = adapter.b.data<float>();
      return;
    }
    float* wide_b = place_.data() + adapter.a.elements();
    widen(adapter.a, place_.data());
    widen(adapter.b, wide_b);
    a = place_.data();
    b = wide_b;
  }

  const float* a;  // [R, in]
  const float* b;  // [out, R]

 private:
  Scratch place_;
};

// What a call writes beside s.
struct Output {
  const Tensor& y;
  bool accumulate;
};

// One adapter for the rows of `index` (null: all).
void forward_of_rows(const Context& context, const Tensor& x, const LoraFactors& adapter,
                     const int32_t* index, int64_t count, const Tensor& s, const Output& output) {
  const int64_t in = x.columns();
  const int64_t out = output.y.columns();
  const int64_t R = adapter.a.rows();
  const int64_t s_stride = s.columns();
  const WideFactors factors(context, adapter);
  const float* a = factors.a;
  const float* b = factors.b;
  const float* x_data = x.data<float>();
  float* s_data = s.data<float>();
  float* y_data = output.y.data<float>();
  const float scaling = adapter.scaling;
  const bool accumulate = output.accumulate;
  constexpr int64_t kFewRows = 2;
  const bool packed = count > kFewRows;
  const int64_t rows_of_task = task_rows(context, count, R * (in + out));
  const int64_t tasks = ceil_div(count, rows_of_task);
  const bool once = tasks <= context.pool.threads() && R <= HWY_DYNAMIC_DISPATCH(ExpandOnceRanks)();
  const PackedByThread by_thread(context, tasks, packed && !once ? padded(out) * R : 0);
  const PackedByThread::Places panels = by_thread.places();
  for_ranges(context, count, rows_of_task, [=](int64_t begin, int64_t end, TaskThread thread) {
    const int64_t first = index == nullptr ? begin : 0;
    const int32_t* indices = index == nullptr ? nullptr : index + begin;
    float* s_rows = s_data + first * s_stride;
    float* y_rows = y_data + first * out;
    SkinnyRows rows{indices, end - begin, in, s_stride};
    HWY_DYNAMIC_DISPATCH(Shrink)(x_data + first * in, a, rows, {in, R, in, 1.0F}, s_rows);
    rows.wide_stride = out;
    const SkinnySize expand{out, R, R, scaling, accumulate};
    if (packed && once) {
      HWY_DYNAMIC_DISPATCH(ExpandOnce)(s_rows, b, Stored::rank_last, rows, expand, y_rows);
      return;
    }
    if (packed) {
      const float* b_panels = panels.of(thread, [=](float* to) {
        HWY_DYNAMIC_DISPATCH(PackPanels)(b, Stored::rank_last, 0, out, expand, to);
      });
      HWY_DYNAMIC_DISPATCH(Expand)(s_rows, b_panels, rows, expand, y_rows);
      return;
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = indices == nullptr ? i : indices[i];
      HWY_DYNAMIC_DISPATCH(ExpandOneRow)
      (s_rows + row * s_stride, b, expand, y_rows + row * out);
    }
  });
}

void forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
             const Tensor& row_adapter, const Tensor& s, const Output& output) {
  if (!row_adapter) {
    forward_of_rows(context, x, adapters[0], nullptr, x.rows(), s, output);
    return;
  }
  // Rows by adapter: each adapter then reads its factors once.
  std::vector<std::vector<int32_t>> rows(adapters.size());
  for (int64_t t = 0; t < x.rows(); ++t) {
    const int32_t chosen = row_adapter.data<int32_t>()[t];
    if (chosen >= 0) {
      rows[chosen].push_back(static_cast<int32_t>(t));
    } else if (!output.accumulate) {
      const int64_t out = output.y.columns();
      std::fill_n(output.y.data<float>() + t * out, out, 0.0F);
    }
  }
  // Many small groups run side by side, one task each (a nested run is serial); few large ones in
  // turn.
  const auto group = [&](int64_t i) {
    const auto count = static_cast<int64_t>(rows[i].size());
    forward_of_rows(context, x, adapters[i], rows[i].data(), count, s, output);
  };
  const auto groups = static_cast<int64_t>(adapters.size());
  if (groups > 4) {
    context.pool.run(groups, group);
  } else {
    for (int64_t i = 0; i < groups; ++i) {
      group(i);
    }
  }
}

}  // namespace

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  forward(context, x, adapters, row_adapter, s, {y, true});
}

void lora_delta(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  forward(context, x, adapters, row_adapter, s, {y, false});
}

namespace {

// Plain values, which each run's tasks take along.
struct BackwardCall {
  int64_t T, in, out, R;
  float scaling;
  const float *x, *s, *dy, *a, *b;
  float *ds, *da, *db, *dx;  // dx null: not wanted

  // Of B transposed and of its gradient: a little longer than a row, so that the rows do not fall
  // into one set of the first cache.
  int64_t stride() const { return out + 16; }
};

// What a thread reads of the adapter.
struct Factors {
  const float* b_transposed;
  const float* a_panels;  // where the gradient of x is wanted
};

struct FactorPlaces {
  PackedByThread::Places b, a;
};

struct PackedFactors {
  PackedFactors(const Context& context, const BackwardCall& call, int64_t tasks)
      : b(context, tasks, call.R * call.stride()),
        a(context, tasks, call.dx != nullptr ? padded(call.in) * call.R : 0) {}

  FactorPlaces places() const { return {b.places(), a.places()}; }

  PackedByThread b, a;
};

// To be called once a task.
Factors factors_of(const BackwardCall& call, const FactorPlaces& places, TaskThread thread) {
  const float* b = places.b.of(thread, [&](float* to) {
    HWY_DYNAMIC_DISPATCH(TransposeRanks)(call.b, call.out, call.R, to, call.stride());
  });
  if (call.dx == nullptr) {
    return {b, nullptr};
  }
  return {b, places.a.of(thread, [&](float* to) {
            HWY_DYNAMIC_DISPATCH(PackPanels)
            (call.a, Stored::rank_first, 0, call.in, {call.in, call.R, call.in, 1.0F}, to);
          })};
}

// ds = scaling dy B, and dx += ds A, of rows [begin, end).
void backward_of_rows(const BackwardCall& call, const Factors& factors, int64_t begin,
                      int64_t end) {
  const int64_t R = call.R;
  SkinnyRows rows{nullptr, end - begin, call.out, R};
  float* ds_rows = call.ds + begin * R;
  HWY_DYNAMIC_DISPATCH(Shrink)
  (call.dy + begin * call.out, factors.b_transposed, rows,
   {call.out, R, call.stride(), call.scaling}, ds_rows);
  if (call.dx != nullptr) {
    const int64_t in = call.in;
    rows.wide_stride = in;
    HWY_DYNAMIC_DISPATCH(Expand)
    (ds_rows, factors.a_panels, rows, {in, R, in, 1.0F}, call.dx + begin * in);
  }
}

// Columns [begin, end) of db, transposed into `sums`, changed there, and back.
template <class Change>
void change_db(const BackwardCall& call, int64_t begin, int64_t end, float* sums,
               const Change& change) {
  const int64_t R = call.R;
  float* db = call.db + begin * R;
  HWY_DYNAMIC_DISPATCH(TransposeRanks)(db, end - begin, R, sums + begin, call.stride());
  change();
  HWY_DYNAMIC_DISPATCH(Transpose)(sums + begin, call.stride(), R, end - begin, db, R);
}

// Calls of_a(call, begin, end) and of_b(call, begin, end) for the columns of A and of B, in one
// run; `rows` are what a column's sums go over. Of few a thread has one task: threads that end
// theirs early and take another's move lines that were to stay where fill and adamw find them.
template <class OfA, class OfB>
void for_columns(const Context& context, const BackwardCall& call, int64_t rows, const OfA& of_a,
                 const OfB& of_b) {
  constexpr int64_t kColumns = 192;
  const int64_t of_thread = ceil_div(call.in + call.out, context.pool.threads());
  constexpr int64_t kFewRows = 32;      // a column of A takes no more than two of B then
  constexpr int64_t kFewValues = 4096;  // of a thread
  const bool few = rows <= kFewRows && call.R * of_thread <= kFewValues;
  const int64_t columns = few ? std::max(of_thread, kColumns) : kColumns;
  const int64_t a_tasks = ceil_div(call.in, columns);
  context.pool.run(a_tasks + ceil_div(call.out, columns), [=](int64_t task) {
    const bool first = task < a_tasks;
    const int64_t begin = (first ? task : task - a_tasks) * columns;
    if (first) {
      of_a(call, begin, std::min(call.in, begin + columns));
    } else {
      of_b(call, begin, std::min(call.out, begin + columns));
    }
  });
}

// da, of columns [begin, end).
void collect_a(const BackwardCall& call, int64_t begin, int64_t end) {
  const int64_t in = call.in;
  HWY_DYNAMIC_DISPATCH(Collect)
  (call.ds, call.x, {nullptr, call.T, in, call.R}, {in, call.R, in, 1.0F}, begin, end, call.da);
}

// Of little work or many ranks: first all rows, then the gradients of A and B by columns.
void backward_by_columns(const Context& context, const BackwardCall& call) {
  const int64_t T = call.T;
  const int64_t in = call.in;
  const int64_t out = call.out;
  const int64_t R = call.R;
  const int64_t rows_of_task = task_rows(context, T, R * (in + out));
  const PackedFactors packed(context, call, ceil_div(T, rows_of_task));
  const FactorPlaces places = packed.places();
  for_ranges(context, T, rows_of_task, [=](int64_t begin, int64_t end, TaskThread thread) {
    backward_of_rows(call, factors_of(call, places, thread), begin, end);
  });
  const Scratch db_sums(context.scratch, R * call.stride());
  float* sums = db_sums.data();
  const auto of_b = [sums](const BackwardCall& of, int64_t begin, int64_t end) {
    change_db(of, begin, end, sums, [&] {
      HWY_DYNAMIC_DISPATCH(Collect)
      (of.s, of.dy, {nullptr, of.T, of.out, of.R}, {of.out, of.R, of.stride(), of.scaling}, begin,
       end, sums);
    });
  };
  if (T * R * (in + out) < kSerialProducts) {
    collect_a(call, 0, in);
    of_b(call, 0, out);
  } else {
    for_columns(context, call, T, collect_a, of_b);
  }
}

// Rows of a block that has sums of its own. They follow from the shapes, so that the bits do not
// depend on the number of threads.
struct Blocks {
  int64_t rows;  // 0: no blocks, where the sums would be more to fetch than the rows are
  bool of_a;     // else only those of B's gradient are by blocks
};

// A row of dy that another core has written is dear to read, and to write again afterwards; one of
// x, which all read, is not. So where there are few rows, the gradient of A is by columns.
Blocks blocks_of(const BackwardCall& call) {
  const int64_t T = call.T;
  const int64_t R = call.R;
  const auto rows_of = [&](int64_t blocks) { return ceil_div(ceil_div(T, blocks), 4) * 4; };
  constexpr int64_t kMostBlocks = 16;
  const int64_t many = std::min(T / std::max<int64_t>(64, 3 * R), kMostBlocks);
  if (many >= 4) {
    return {rows_of(many), true};
  }
  const int64_t few = T < 128 ? 2 : 4;
  const bool worth_it = T * R * (call.in + call.out) >= kSerialProducts && T >= 2 * R * few;
  return {worth_it ? rows_of(few) : 0, false};
}

// A task does all that there is to do with some rows while they are in its cache.
void backward_by_rows(const Context& context, const BackwardCall& call, const Blocks& by) {
  constexpr int64_t kMostRows = 32;  // at a time
  const int64_t parts = ceil_div(by.rows, kMostRows);
  const int64_t rows = ceil_div(ceil_div(by.rows, parts), 4) * 4;  // whole tiles of Shrink
  const int64_t in = call.in;
  const int64_t out = call.out;
  const int64_t R = call.R;
  const int64_t blocks = ceil_div(call.T, by.rows);
  const int64_t stride = call.stride();
  const int64_t values_of_a = by.of_a ? R * in : 0;
  const int64_t sums_of_block = values_of_a + R * stride + kApart;  // da, then db transposed
  const Scratch all_sums(context.scratch, blocks * sums_of_block + R * stride);
  float* sums = all_sums.data();
  float* db_sums = sums + blocks * sums_of_block;
  const PackedFactors packed(context, call, blocks);
  const FactorPlaces places = packed.places();
  for_ranges(context, call.T, by.rows, [=](int64_t first, int64_t last, TaskThread thread) {
    float* a_sums = sums + first / by.rows * sums_of_block;
    float* b_sums = a_sums + values_of_a;
    const Factors own = factors_of(call, places, thread);
    for (int64_t begin = first; begin < last; begin += rows) {
      const int64_t end = std::min(last, begin + rows);
      backward_of_rows(call, own, begin, end);
      const bool more = begin > first;
      if (by.of_a) {
        HWY_DYNAMIC_DISPATCH(Collect)
        (call.ds + begin * R, call.x + begin * in, {nullptr, end - begin, in, R},
         {in, R, in, 1.0F, more}, 0, in, a_sums);
      }
      HWY_DYNAMIC_DISPATCH(Collect)
      (call.s + begin * R, call.dy + begin * out, {nullptr, end - begin, out, R},
       {out, R, stride, call.scaling, more}, 0, out, b_sums);
    }
  });
  const bool shared = context.pool.threads() > 1 && blocks * sums_of_block <= kMostShared;
  const auto add_all = [=](float* from, int64_t row, int64_t begin, int64_t end, float* to) {
    for (int64_t r = 0; r < R; ++r) {
      float* own = from + r * row + begin;
      add_rows(own, sums_of_block, blocks, end - begin, to + r * row + begin);
      for (int64_t block = 0; shared && block < blocks; ++block) {
        take_lines(own + block * sums_of_block, end - begin);
      }
    }
  };
  for_columns(
      context, call, by.of_a ? blocks : call.T,
      [=](const BackwardCall& of, int64_t begin, int64_t end) {
        if (values_of_a > 0) {
          add_all(sums, in, begin, end, of.da);
        } else {
          collect_a(of, begin, end);
        }
      },
      [=](const BackwardCall& of, int64_t begin, int64_t end) {
        change_db(of, begin, end, db_sums,
                  [&] { add_all(sums + values_of_a, stride, begin, end, db_sums); });
      });
}

}  // namespace

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  const BackwardCall call{
      .T = x.rows(),
      .in = x.columns(),
      .out = dy.columns(),
      .R = adapter.a.rows(),
      .scaling = adapter.scaling,
      .x = x.data<float>(),
      .s = s.data<float>(),
      .dy = dy.data<float>(),
      .a = adapter.a.data<float>(),
      .b = adapter.b.data<float>(),
      .ds = ds.data<float>(),
      .da = da.data<float>(),
      .db = db.data<float>(),
      .dx = dx ? dx.data<float>() : nullptr,
  };
  const Blocks blocks = blocks_of(call);
  if (blocks.rows > 0) {
    backward_by_rows(context, call, blocks);
  } else {
    backward_by_columns(context, call);
  }
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
