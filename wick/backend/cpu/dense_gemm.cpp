// Blocks of the result are tasks; each is one call of oneDNN.
#include "wick/backend/cpu/dense_gemm.h"

#include <omp.h>
#include <dnnl.hpp>

#include <cassert>
#include <unordered_map>

namespace wick::cpu {

namespace {

// oneDNN asks OpenMP how many threads to use; the pool has them all, so the answer here is one.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int before_;
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
template <class Product>
Cutting cut(const Product& p) {
  constexpr int64_t kWantedTasks = 8;
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

void add_bias(const float* bias, int64_t rows, int64_t columns, int64_t stride, float* c) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      c[m * stride + n] += bias[n];
    }
  }
}

// A block of a Bf16Product.
struct Bf16Block {
  int64_t rows, columns;
  const Bf16 *a, *b;
  const float* bias;
  float* c;
};

// oneDNN keeps the code that it makes for a size, so asking for it again costs some 5 us.
void multiply_block(const Bf16Product& p, const Bf16Block& block) {
  using dnnl::memory;
  constexpr auto kBf16 = memory::data_type::bf16;
  constexpr auto kF32 = memory::data_type::f32;
  const auto any = [](const auto* data) {
    return const_cast<void*>(static_cast<const void*>(data));
  };
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const memory::dims weight_strides =
      p.form == MatmulForm::nt ? memory::dims{1, p.K} : memory::dims{p.N, 1};
  const memory::desc a({block.rows, p.K}, kBf16, memory::dims{p.K, 1});
  const memory::desc b({p.K, block.columns}, kBf16, weight_strides);
  const memory::desc c({block.rows, block.columns}, kF32, memory::dims{p.N, 1});
  const memory::desc bias({1, block.columns}, kF32, memory::dims{block.columns, 1});
  dnnl::primitive_attr attributes;
  if (p.accumulate) {
    dnnl::post_ops add;
    add.append_sum(1.0F);
    attributes.set_post_ops(add);
  }
  const auto description =
      block.bias == nullptr ? dnnl::matmul::desc(a, b, c) : dnnl::matmul::desc(a, b, bias, c);
  const dnnl::matmul product(dnnl::matmul::primitive_desc(description, attributes, engine));
  dnnl::stream stream(engine);
  std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, memory(a, engine, any(block.a))},
                                               {DNNL_ARG_WEIGHTS, memory(b, engine, any(block.b))},
                                               {DNNL_ARG_DST, memory(c, engine, block.c)}};
  if (block.bias != nullptr) {
    arguments.emplace(DNNL_ARG_BIAS, memory(bias, engine, any(block.bias)));
  }
  product.execute(stream, arguments);
  stream.wait();
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
  const Cutting block = cut(p);
  const int64_t row_tasks = ceil_div(p.M, block.rows);
  const bool transposed = p.form == MatmulForm::tn;
  context.pool.run(row_tasks * ceil_div(p.N, block.columns), [&](int64_t task) {
    const OneOpenMpThread one;
    const int64_t m = task % row_tasks * block.rows;
    const int64_t n = task / row_tasks * block.columns;
    const int64_t rows = std::min(block.rows, p.M - m);
    const int64_t columns = std::min(block.columns, p.N - n);
    float* c = p.c + m * p.N + n;
    [[maybe_unused]] const dnnl_status_t status = dnnl_sgemm(
        transposed ? 'T' : 'N', 'N', rows, columns, p.K, 1.0F, transposed ? p.a + m : p.a + m * p.K,
        transposed ? p.M : p.K, p.b + n, p.N, p.accumulate ? 1.0F : 0.0F, c, p.N);
    assert(status == dnnl_success);
    if (p.bias != nullptr) {
      add_bias(p.bias + n, rows, columns, p.N, c);
    }
  });
}

void multiply_bf16(const Context& context, const Bf16Product& p) {
  const Cutting block = cut(p);
  const int64_t row_tasks = ceil_div(p.M, block.rows);
  const int64_t column = p.form == MatmulForm::nt ? p.K : 1;  // from one to the next in b
  context.pool.run(row_tasks * ceil_div(p.N, block.columns), [&](int64_t task) {
    const OneOpenMpThread one;
    const int64_t m = task % row_tasks * block.rows;
    const int64_t n = task / row_tasks * block.columns;
    multiply_block(p,
                   {std::min(block.rows, p.M - m), std::min(block.columns, p.N - n), p.a + m * p.K,
                    p.b + n * column, p.bias == nullptr ? nullptr : p.bias + n, p.c + m * p.N + n});
  });
}

}  // namespace wick::cpu
