// Dense products (after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication",
// 2008): both sides are packed block by block into the order in which the inner loop reads them,
// and a tile of the result stays in registers. Packing widens bf16 and f16, so narrow weights cost
// no pass of their own and run at the rate of f32.
//
// With a few rows there is nothing to reuse, and packing would cost more than the product
// (few_rows.h). And where both sides are f32 and the right one is not transposed, a library is as
// good (dense_gemm.h).
//
// At medium precision the left side of a product with bf16 weights is rounded to bf16 first, and
// the library multiplies the two as they are. Products of bf16 numbers are exact in f32, so on a
// CPU without instructions for them the panels give the same but for the rounding of sums.
#include "wick/backend/cpu/matmul.h"

#include "wick/backend/cpu/dense_gemm.h"
#include "wick/backend/cpu/few_rows.h"
#include "wick/backend/cpu/packed_by_thread.h"
#include "wick/backend/cpu/rowwise.h"
#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/matmul.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "wick/backend/cpu/matmul_inl.h"

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

struct MatmulSizes {
  int64_t M, N, K;
};

// Rows [m, m + rows) of the left side, depths [k, k + depth), into [row][kLeftStride].
void pack_left_block(const float* a, MatmulForm form, const MatmulSizes& sizes, int64_t m,
                     int64_t rows, int64_t k, int64_t depth, float* to) {
  if (form == MatmulForm::tn) {
    HWY_DYNAMIC_DISPATCH(PackLeftTransposed)(a + k * sizes.M + m, sizes.M, rows, depth, to);
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * kLeftStride, a + (m + i) * sizes.K + k, depth * sizeof(float));
  }
}

// Rows of the left side that a product takes at a time.
struct LeftRows {
  int64_t first, count;
};

// Rows [begin, end) of `of`, all depths, into [depth block][row of `of`][kLeftStride].
void pack_left(const Tensor& a, MatmulForm form, const MatmulSizes& sizes, const LeftRows& of,
               int64_t begin, int64_t end, float* to) {
  for (int64_t k = 0; k < sizes.K; k += kDepth) {
    pack_left_block(a.data<float>(), form, sizes, of.first + begin, end - begin, k,
                    std::min(kDepth, sizes.K - k),
                    to + (k / kDepth * of.count + begin) * kLeftStride);
  }
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
  const int64_t depth_blocks = std::max<int64_t>(1, ceil_div(K, kDepth));
  const int64_t row_floats = depth_blocks * kLeftStride;
  // Rows that are packed at a time: some 16 MiB.
  const int64_t most_rows = std::max<int64_t>(512, (int64_t{1} << 22) / row_floats);
  constexpr int64_t kMostOwn = 65536;  // values of a left side that each thread packs for itself
  const bool own = M * K <= kMostOwn;
  const Scratch shared_left(context.scratch, own ? 0 : row_floats * std::min(M, most_rows));
  for (int64_t m0 = 0; m0 < M; m0 += most_rows) {
    const LeftRows left_rows{m0, std::min(most_rows, M - m0)};
    const int64_t rows = left_rows.count;
    if (!own) {
      for_ranges(context, rows, rows_of(65536, K), [&](int64_t begin, int64_t end) {
        pack_left(a, args.form, sizes, left_rows, begin, end, shared_left.data());
      });
    }
    const Cut cut = cut_result(rows, N, K);
    const int64_t row_tasks = ceil_div(rows, cut.rows);
    const int64_t tasks = row_tasks * ceil_div(N, cut.columns);
    const int64_t width = HWY_DYNAMIC_DISPATCH(TileColumns)();
    const PackedByThread own_packed(context, tasks, own ? row_floats * rows : 0);
    const PackedByThread::Places own_left = own_packed.places();
    const auto pack_own = [&](float* to) {
      pack_left(a, args.form, sizes, left_rows, 0, rows, to);
    };
    context.pool.run(tasks, [&, N = N, K = K](int64_t task, TaskThread thread) {
      const float* left = own ? own_left.of(thread, pack_own) : shared_left.data();
      const int64_t m = task % row_tasks * cut.rows;
      const int64_t n = task / row_tasks * cut.columns;
      PackedProduct p{};
      p.M = std::min(cut.rows, rows - m);
      p.N = std::min(cut.columns, N - n);
      p.c = c.data<float>() + (m0 + m) * N + n;
      p.c_stride = N;
      const Scratch right(context.scratch, ceil_div(p.N, width) * width * std::min(K, kDepth));
      p.right = right.data();
      for (int64_t k = 0; k == 0 || k < K; k += kDepth) {  // without depth, c is still to be set
        p.K = std::min(kDepth, K - k);
        p.left = left + (k / kDepth * rows + m) * kLeftStride;
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

// All of the right side, into [depth block][panels of TileColumns()].
void pack_right_side(const Tensor& b, MatmulForm form, const MatmulSizes& sizes, float* to) {
  const auto [M, N, K] = sizes;
  const int64_t width = HWY_DYNAMIC_DISPATCH(TileColumns)();
  const bool transposed = form == MatmulForm::nt;
  for (int64_t n = 0; n < N; n += width) {
    const int64_t columns = std::min(width, N - n);
    for (int64_t k = 0; k < K; k += kDepth) {
      const int64_t depth = std::min(kDepth, K - k);
      with_elements(b, [&](const auto* weights) {
        pack_right(transposed ? weights + n * K + k : weights + k * N + n, transposed ? K : N,
                   transposed, columns, depth, to + ceil_div(N, width) * width * k + n * depth);
      });
    }
  }
}

// A right side so small that a thread packs all of it once. A task then has rows of its own, and
// packs them where its core finds them again: in the second cache.
void multiply_by_rows(const Context& context, const Tensor& a, const Tensor& b,
                      const MatmulArgs& args, const MatmulSizes& sizes, const float* bias,
                      const Tensor& c) {
  const auto [M, N, K] = sizes;
  const int64_t width = HWY_DYNAMIC_DISPATCH(TileColumns)();
  const int64_t tile = HWY_DYNAMIC_DISPATCH(TileRows)();
  const int64_t padded = ceil_div(N, width) * width;
  // Few enough rows that the tasks are many, enough that they reuse the panels; and as many for
  // each thread.
  const int64_t rows_of_task = ceil_div(40, tile) * tile;
  const int64_t rows_of_thread = std::max(rows_of_task, ceil_div(M, context.pool.threads()));
  const int64_t tasks_of_thread = ceil_div(rows_of_thread, rows_of_task);
  const int64_t tasks = ceil_div(M, rows_of_thread) * tasks_of_thread;
  const PackedByThread by_thread(context, tasks, padded * K);
  const PackedByThread::Places right = by_thread.places();
  context.pool.run(tasks, [&, M = M, N = N, K = K](int64_t task, TaskThread thread) {
    const float* panels = right.of(thread, [&](float* to) {
      pack_right_side(b, args.form, {M, N, K}, to);
    });
    const int64_t first = task / tasks_of_thread * rows_of_thread;
    const int64_t begin = first + task % tasks_of_thread * rows_of_task;
    const int64_t end = std::min({M, first + rows_of_thread, begin + rows_of_task});
    if (begin >= end) {
      return;
    }
    const Scratch left(context.scratch, (end - begin) * kLeftStride);
    PackedProduct p{};
    p.M = end - begin;
    p.N = N;
    p.left = left.data();
    p.c = c.data<float>() + begin * N;
    p.c_stride = N;
    for (int64_t k = 0; k < K; k += kDepth) {
      p.K = std::min(kDepth, K - k);
      p.right = panels + padded * k;
      p.accumulate = args.accumulate || k > 0;
      p.bias = k == 0 ? bias : nullptr;
      pack_left_block(a.data<float>(), args.form, {M, N, K}, begin, p.M, k, p.K, left.data());
      HWY_DYNAMIC_DISPATCH(MultiplyPacked)(p);
    }
  });
}

bool suits_rows(const MatmulSizes& sizes) {
  constexpr int64_t kMostRight = 262'144;
  return sizes.K > 0 && sizes.N * sizes.K <= kMostRight && sizes.M >= 128;
}

bool rounds_left(const Context& context, MatmulForm form, DType weights, const MatmulSizes& sizes) {
  return context.matmul_precision == MatmulPrecision::medium && weights == DType::bf16 &&
         form != MatmulForm::tn && sizes.M > kFewRows && sizes.K > 0;
}

Tensor scratch_tensor(const Context& context, const Shape& shape, DType dtype) {
  const Block block = context.scratch.take(shape.elements() * size_of(dtype));
  auto release = [&memory = context.scratch, block] { memory.give_back(block); };
  return Tensor(std::make_shared<Buffer>(block.address, block.bytes, std::move(release)), 0, shape,
                dtype);
}

// But for few rows of nt.
void multiply(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
              const MatmulSizes& sizes, const float* bias, const Tensor& c) {
  if (b.dtype() == DType::f32 && dense_gemm_serves(args.form, sizes.K)) {
    multiply_dense(context, {args.form, sizes.M, sizes.N, sizes.K, a.data<float>(), b.data<float>(),
                             bias, args.accumulate, c.data<float>()});
  } else if (suits_rows(sizes)) {
    multiply_by_rows(context, a, b, args, sizes, bias, c);
  } else {
    multiply_packed(context, a, b, args, sizes, bias, c);
  }
}

// The left side rounded to bf16.
void multiply_rounded(const Context& context, const Tensor& a, const Tensor& b,
                      const MatmulArgs& args, const MatmulSizes& sizes, const float* bias,
                      const Tensor& c) {
  const Tensor narrow = scratch_tensor(context, a.shape(), DType::bf16);
  cast(context, a, narrow);
  if (context.bf16_products) {
    multiply_bf16(context, {args.form, sizes.M, sizes.N, sizes.K, narrow.data<Bf16>(),
                            b.data<Bf16>(), bias, args.accumulate, c.data<float>()});
    return;
  }
  const Tensor rounded = scratch_tensor(context, a.shape(), DType::f32);
  cast(context, narrow, rounded);
  multiply(context, rounded, b, args, sizes, bias, c);
}

}  // namespace

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c) {
  const MatmulSizes sizes{c.rows(), c.columns(),
                          args.form == MatmulForm::tn ? a.rows() : a.columns()};
  if (sizes.M == 0 || sizes.N == 0) {
    return;
  }
  if (args.form == MatmulForm::nt && sizes.M <= kFewRows) {
    multiply_few_rows(context, a, b, args, c);
    return;
  }
  const Scratch wide_bias(context.scratch, args.bias != nullptr ? sizes.N : 0);
  const float* bias = nullptr;
  if (args.bias != nullptr) {
    widen(*args.bias, wide_bias.data());
    bias = wide_bias.data();
  }
  if (rounds_left(context, args.form, b.dtype(), sizes)) {
    multiply_rounded(context, a, b, args, sizes, bias, c);
  } else {
    multiply(context, a, b, args, sizes, bias, c);
  }
}

void add_rows(const float* x, int64_t stride, int64_t T, int64_t columns, float* out) {
  HWY_DYNAMIC_DISPATCH(AddRows)(x, stride, T, columns, out);
}

void add_column_sums(const Context& context, const Tensor& x, const Tensor& out) {
  const int64_t N = x.columns();
  const int64_t columns = x.elements() < 65536 ? std::max<int64_t>(N, 1) : 256;
  for_ranges(context, N, columns, [&](int64_t begin, int64_t end) {
    add_rows(x.data<float>() + begin, N, x.rows(), end - begin, out.data<float>() + begin);
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
