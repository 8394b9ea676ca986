// Blocks of the result are tasks; each is one call of oneDNN.
#include "wick/backend/cpu/dense_gemm.h"

#include <omp.h>
#include <dnnl.hpp>

#include <cassert>
#include <csignal>

namespace wick::cpu {

namespace {

// Those that a handler may be called for at any time; not those by which code reports its own
// faults.
sigset_t signals_from_outside() {
  sigset_t set;
  sigfillset(&set);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
    sigdelset(&set, fault);
  }
  return set;
}

// What oneDNN needs around its calls. It asks OpenMP how many threads to use; the pool has them
// all, so the answer here is one. And its code keeps values further below the end of the stack than
// the 128 bytes that a signal's handler leaves alone (seen with 2.6, in dnnl_sgemm: Ctrl-C in a
// step spoilt results and the heap), so signals wait here.
class AroundOneDnn {
 public:
  AroundOneDnn() : threads_before_(omp_get_max_threads()) {
    static const sigset_t signals = signals_from_outside();
    pthread_sigmask(SIG_BLOCK, &signals, &signals_before_);
    omp_set_num_threads(1);
  }
  ~AroundOneDnn() {
    omp_set_num_threads(threads_before_);
    pthread_sigmask(SIG_SETMASK, &signals_before_, nullptr);
  }
  AroundOneDnn(const AroundOneDnn&) = delete;
  AroundOneDnn& operator=(const AroundOneDnn&) = delete;

 private:
  int threads_before_;
  sigset_t signals_before_{};
};

// The size of each of `parts` equal parts of `whole`, in steps that suit oneDNN's tiles.
int64_t part_of(int64_t whole, int64_t parts, int64_t step) {
  return ceil_div(ceil_div(whole, parts), step) * step;
}

struct Cutting {
  int64_t rows, columns;
};

// Large enough for oneDNN's full rate (both sides are packed once a block), small enough that some
// eight tasks can share the work.
constexpr int64_t kWantedTasks = 8;

template <class Product>
Cutting cut(const Product& p) {
  if (p.M * p.N * p.K < kSerialProducts) {
    return {p.M, p.N};
  }
  int64_t row_parts = ceil_div(p.M, 256);
  int64_t column_parts = ceil_div(p.N, 256);
  while (row_parts * column_parts < kWantedTasks) {
    if (p.M / row_parts >= 128 && p.M / row_parts >= p.N / column_parts) {
      row_parts *= 2;
    } else if (p.N / column_parts >= 128) {
      column_parts *= 2;
    } else {
      break;
    }
  }
  return {part_of(p.M, row_parts, 8), part_of(p.N, column_parts, 16)};
}

// Of bf16, oneDNN packs the right side of each block: so blocks of many rows, as wide as its tiles,
// where those are tasks enough.
Cutting cut_bf16(const Bf16Product& p) {
  constexpr int64_t kColumns = 192;
  const int64_t row_parts = ceil_div(p.M, 512);
  if (row_parts * ceil_div(p.N, kColumns) < kWantedTasks) {
    return cut(p);
  }
  return {part_of(p.M, row_parts, 8), kColumns};
}

void add_bias(const float* bias, int64_t rows, int64_t columns, int64_t stride, float* c) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      c[m * stride + n] += bias[n];
    }
  }
}

// A part of a product: of its result, or also of its depth.
struct Part {
  int64_t m, n, k, rows, columns, depth;
};

// Where a part goes: to rows `stride` apart.
struct Target {
  float* c;
  int64_t stride;
  bool accumulate;
};

void multiply_part(const DenseProduct& p, const Part& part, const Target& to) {
  const bool transposed = p.form == MatmulForm::tn;
  const float* a = transposed ? p.a + part.k * p.M + part.m : p.a + part.m * p.K + part.k;
  [[maybe_unused]] const dnnl_status_t status =
      dnnl_sgemm(transposed ? 'T' : 'N', 'N', part.rows, part.columns, part.depth, 1.0F, a,
                 transposed ? p.M : p.K, p.b + part.k * p.N + part.n, p.N,
                 to.accumulate ? 1.0F : 0.0F, to.c, to.stride);
  assert(status == dnnl_success);
}

// oneDNN keeps the code that it makes for a size, so asking for it again costs some 5 us.
void multiply_part(const Bf16Product& p, const Part& part, const Target& to) {
  using dnnl::memory;
  constexpr auto kBf16 = memory::data_type::bf16;
  const auto any = [](const auto* data) {
    return const_cast<void*>(static_cast<const void*>(data));
  };
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const bool nt = p.form == MatmulForm::nt;
  const memory::desc a({part.rows, part.depth}, kBf16, memory::dims{p.K, 1});
  const memory::desc b({part.depth, part.columns}, kBf16,
                       nt ? memory::dims{1, p.K} : memory::dims{p.N, 1});
  const memory::desc c({part.rows, part.columns}, memory::data_type::f32,
                       memory::dims{to.stride, 1});
  dnnl::primitive_attr attributes;
  if (to.accumulate) {
    dnnl::post_ops add;
    add.append_sum(1.0F);
    attributes.set_post_ops(add);
  }
  const dnnl::matmul::desc description(a, b, c);
  const dnnl::matmul product(dnnl::matmul::primitive_desc(description, attributes, engine));
  dnnl::stream stream(engine);
  const Bf16* left = p.a + part.m * p.K + part.k;
  const Bf16* right = p.b + (nt ? part.n * p.K + part.k : part.k * p.N + part.n);
  product.execute(stream, {{DNNL_ARG_SRC, memory(a, engine, any(left))},
                           {DNNL_ARG_WEIGHTS, memory(b, engine, any(right))},
                           {DNNL_ARG_DST, memory(c, engine, to.c)}});
  stream.wait();
}

// A task a block of the result.
template <class Product>
void multiply_blocks(const Context& context, const Product& p, const Cutting& block) {
  const int64_t row_tasks = ceil_div(p.M, block.rows);
  context.pool.run(row_tasks * ceil_div(p.N, block.columns), [&](int64_t task) {
    const AroundOneDnn around;
    const int64_t m = task % row_tasks * block.rows;
    const int64_t n = task / row_tasks * block.columns;
    const Part part{m, n, 0, std::min(block.rows, p.M - m), std::min(block.columns, p.N - n), p.K};
    const Target to{p.c + m * p.N + n, p.N, p.accumulate};
    multiply_part(p, part, to);
    if (p.bias != nullptr) {
      add_bias(p.bias + n, part.rows, part.columns, p.N, to.c);
    }
  });
}

// Products of little width and great depth, such as the gradient of the head's input: blocks of the
// result would be narrow, and each packs its part of both sides. So a task is a part of the depth,
// in pieces that oneDNN packs well, and the parts are added up in their order.
template <class Product>
bool suits_depth(const Product& p) {
  constexpr int64_t kLeastDepth = 16384;
  constexpr int64_t kMostResult = 524'288;  // values; there are kWantedTasks of them
  return p.form == MatmulForm::nn && p.K >= kLeastDepth && p.M * p.N <= kMostResult;
}

template <class Product>
void multiply_depths(const Context& context, const Product& p) {
  constexpr int64_t kPiece = 8192;
  const int64_t values = p.M * p.N;
  const int64_t depth = part_of(p.K, kWantedTasks, 64);
  const int64_t parts = ceil_div(p.K, depth);
  const Scratch sums(context.scratch, parts * values);
  context.pool.run(parts, [&](int64_t task) {
    const AroundOneDnn around;
    const int64_t end = std::min(p.K, (task + 1) * depth);
    for (int64_t k = task * depth; k < end; k += kPiece) {
      multiply_part(p, {0, 0, k, p.M, p.N, std::min(kPiece, end - k)},
                    {sums.data() + task * values, p.N, k > task * depth});
    }
  });
  for_ranges(context, p.M, rows_of(task_elements(values), p.N), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * p.N; i < end * p.N; ++i) {
      float sum = p.accumulate ? p.c[i] : 0.0F;
      for (int64_t part = 0; part < parts; ++part) {
        sum += sums.data()[part * values + i];
      }
      p.c[i] = sum;
    }
    if (p.bias != nullptr) {
      add_bias(p.bias, end - begin, p.N, p.N, p.c + begin * p.N);
    }
  });
}

}  // namespace

bool dense_gemm_serves(MatmulForm form, int64_t K) {
#if defined(__x86_64__)
  return form != MatmulForm::nt && K > 0;
#else
  static_cast<void>(form);
  static_cast<void>(K);
  return false;  // oneDNN has kernels of its own for x86 alone
#endif
}

void multiply_dense(const Context& context, const DenseProduct& p) {
  if (suits_depth(p)) {
    multiply_depths(context, p);
  } else {
    multiply_blocks(context, p, cut(p));
  }
}

void multiply_bf16(const Context& context, const Bf16Product& p) {
  if (suits_depth(p)) {
    multiply_depths(context, p);
  } else {
    multiply_blocks(context, p, cut_bf16(p));
  }
}

}  // namespace wick::cpu
