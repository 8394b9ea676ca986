// LoRA by three skinny products, each with the low-rank side in registers:
//   shrink  s[t,r]  = scale sum_n x[t,n] w[r,n]      dot products along n
//   expand  y[t,n] += scale sum_r s[t,r] w[r,n]      w in panels, so that they stay in L1
//   collect g[r,n] += scale sum_t s[t,r] x[t,n]      the gradients of A and of B
#include "wick/backend/cpu/lora.h"

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
HWY_EXPORT(PackPanelsOfColumns);
HWY_EXPORT(PackPanelsOfRows);
HWY_EXPORT(Expand);
HWY_EXPORT(ExpandOneRow);
HWY_EXPORT(Collect);
HWY_EXPORT(Transpose);

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

enum class Stored { rank_first, rank_last };

// w as [R, n] or as [n, R] into panels for Expand.
void pack_panels(const float* w, Stored stored, int64_t n, int64_t R, float* panels) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(PanelColumns)();
  for (int64_t first = 0; first < n; first += width) {
    const int64_t columns = std::min(width, n - first);
    float* panel = panels + first * R;
    if (columns < width) {
      std::fill_n(panel, width * R, 0.0F);
    }
    if (stored == Stored::rank_first) {
      HWY_DYNAMIC_DISPATCH(PackPanelsOfColumns)(w, first, columns, n, R, panel);
    } else {
      HWY_DYNAMIC_DISPATCH(PackPanelsOfRows)(w, first, columns, R, panel);
    }
  }
}

// What a call writes beside s.
struct Output {
  const Tensor& y;
  bool accumulate;
};

// One adapter for the rows of `index` (null: all).
void forward_of_rows(const Context& context, const Tensor& x, const LoraFactors& adapter,
                     const int32_t* index, int64_t count, const Tensor& s, const Output& output) {
  const Tensor& y = output.y;
  const int64_t in = x.columns();
  const int64_t out = y.columns();
  const int64_t R = adapter.a.rows();
  const float* b = adapter.b.data<float>();
  constexpr int64_t kFewRows = 2;
  const bool packed = count > kFewRows;
  const int64_t rows_of_task = task_rows(context, count, R * (in + out));
  PackedByThread panels(context, ceil_div(count, rows_of_task), packed ? padded(out) * R : 0,
                        [=](float* to) { pack_panels(b, Stored::rank_last, out, R, to); });
  for_ranges(context, count, rows_of_task, [&](int64_t begin, int64_t end, int thread) {
    const int64_t first = index == nullptr ? begin : 0;
    const int32_t* indices = index == nullptr ? nullptr : index + begin;
    const float* x_rows = x.data<float>() + first * in;
    float* s_rows = s.data<float>() + first * s.columns();
    float* y_rows = y.data<float>() + first * out;
    SkinnyRows rows{indices, end - begin, in, s.columns()};
    HWY_DYNAMIC_DISPATCH(Shrink)
    (x_rows, adapter.a.data<float>(), rows, {in, R, in, 1.0F}, s_rows);
    const SkinnySize size{out, R, R, adapter.scaling, output.accumulate};
    rows.wide_stride = out;
    if (packed) {
      HWY_DYNAMIC_DISPATCH(Expand)(s_rows, panels.of(thread), rows, size, y_rows);
      return;
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = indices == nullptr ? i : indices[i];
      HWY_DYNAMIC_DISPATCH(ExpandOneRow)
      (s_rows + row * s.columns(), b, size, y_rows + row * out);
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

void lora_shrink(const float* x, int64_t rows, const LoraFactors& adapter, int64_t begin,
                 int64_t end, float* s, int64_t s_stride) {
  const int64_t in = adapter.a.columns();
  HWY_DYNAMIC_DISPATCH(Shrink)
  (x, adapter.a.data<float>() + begin * in, {nullptr, rows, in, s_stride},
   {in, end - begin, in, 1.0F}, s + begin);
}

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  const int64_t T = x.rows();
  const int64_t in = x.columns();
  const int64_t out = dy.columns();
  const int64_t R = adapter.a.rows();
  const float scaling = adapter.scaling;
  const float* a = adapter.a.data<float>();
  const float* b = adapter.b.data<float>();

  // Rows of these are a little longer, so that they do not fall into one set of the first cache.
  const int64_t stride = out + 16;
  const int64_t rows_of_task = task_rows(context, T, R * (in + out));
  const int64_t tasks = ceil_div(T, rows_of_task);
  PackedByThread b_transposed(context, tasks, R * stride, [=](float* to) {
    HWY_DYNAMIC_DISPATCH(Transpose)(b, R, out, R, to, stride);
  });
  PackedByThread a_panels(context, tasks, dx ? padded(in) * R : 0,
                          [=](float* to) { pack_panels(a, Stored::rank_first, in, R, to); });
  for_ranges(context, T, rows_of_task, [&](int64_t begin, int64_t end, int thread) {
    SkinnyRows rows{nullptr, end - begin, out, R};
    float* ds_rows = ds.data<float>() + begin * R;
    HWY_DYNAMIC_DISPATCH(Shrink)
    (dy.data<float>() + begin * out, b_transposed.of(thread), rows, {out, R, stride, scaling},
     ds_rows);
    if (dx) {
      rows.wide_stride = in;
      HWY_DYNAMIC_DISPATCH(Expand)
      (ds_rows, a_panels.of(thread), rows, {in, R, in, 1.0F}, dx.data<float>() + begin * in);
    }
  });

  // The gradients of A and B in one run: first the columns of A's, then those of B's (transposed).
  const Scratch db_transposed(context.scratch, R * stride);
  const bool serial = T * R * (in + out) < kSerialProducts;
  const int64_t columns = serial ? std::max<int64_t>({in, out, 1}) : 192;
  const int64_t a_tasks = ceil_div(in, columns);
  const int64_t b_tasks = ceil_div(out, columns);
  const auto collect = [&](int64_t task) {
    if (task < a_tasks) {
      const int64_t begin = task * columns;
      HWY_DYNAMIC_DISPATCH(Collect)
      (ds.data<float>(), x.data<float>(), {nullptr, T, in, R}, {in, R, in, 1.0F}, begin,
       std::min(in, begin + columns), da.data<float>());
      return;
    }
    const int64_t begin = (task - a_tasks) * columns;
    const int64_t end = std::min(out, begin + columns);
    float* sums = db_transposed.data();
    HWY_DYNAMIC_DISPATCH(Transpose)
    (db.data<float>() + begin * R, R, end - begin, R, sums + begin, stride);
    HWY_DYNAMIC_DISPATCH(Collect)
    (s.data<float>(), dy.data<float>(), {nullptr, T, out, R}, {out, R, stride, scaling}, begin, end,
     sums);
    HWY_DYNAMIC_DISPATCH(Transpose)
    (sums + begin, stride, R, end - begin, db.data<float>() + begin * R, R);
  };
  if (serial) {
    for (int64_t task = 0; task < a_tasks + b_tasks; ++task) {
      collect(task);
    }
  } else {
    context.pool.run(a_tasks + b_tasks, collect);
  }
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
