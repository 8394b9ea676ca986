// Blocks of the result are tasks; each is one product by oneDNN on one thread.
#include "wick/backend/cpu/matmul.h"

#include <dnnl.h>
#include <omp.h>

#include <cassert>

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

void to_f32(const Tensor& from, int64_t begin, int64_t count, float* to) {
  const uint16_t* bits = from.data<uint16_t>() + begin;
  if (from.dtype() == DType::bf16) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = bf16_to_f32(bits[i]);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = f16_to_f32(bits[i]);
    }
  }
}

}  // namespace

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c) {
  const int64_t M = c.rows();
  const int64_t N = c.columns();
  const int64_t K = args.form == MatmulForm::tn ? a.rows() : a.columns();
  if (M == 0 || N == 0) {
    return;
  }
  Scratch wide(context.scratch, b.dtype() == DType::f32 ? 0 : b.elements());
  const float* weights = wide.data();
  if (b.dtype() == DType::f32) {
    weights = b.data<float>();
  } else {
    for_ranges(context, b.elements(), 1 << 16, [&](int64_t begin, int64_t end) {
      to_f32(b, begin, end - begin, wide.data() + begin);
    });
  }
  Scratch bias(context.scratch, N);
  if (args.bias != nullptr) {
    if (args.bias->dtype() == DType::f32) {
      std::copy_n(args.bias->data<float>(), N, bias.data());
    } else {
      to_f32(*args.bias, 0, N, bias.data());
    }
  }
  constexpr int64_t kColumns = 256;
  for_ranges(context, N, kColumns, [&](int64_t n0, int64_t n1) {
    const OneOpenMpThread one;
    float* out = c.data<float>() + n0;
    if (K > 0) {
      const bool tn = args.form == MatmulForm::tn;
      const bool nt = args.form == MatmulForm::nt;
      const float* right = nt ? weights + n0 * K : weights + n0;
      dnnl_sgemm(tn ? 'T' : 'N', nt ? 'T' : 'N', M, n1 - n0, K, 1.0F, a.data<float>(), tn ? M : K,
                 right, nt ? K : N, args.accumulate ? 1.0F : 0.0F, out, N);
    }
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < n1 - n0; ++n) {
        if (K == 0 && !args.accumulate) {
          out[m * N + n] = 0;
        }
        if (args.bias != nullptr) {
          out[m * N + n] += bias.data()[n0 + n];
        }
      }
    }
  });
}

void add_column_sums(const Context& context, const Tensor& x, const Tensor& out) {
  const int64_t T = x.rows();
  const int64_t N = x.columns();
  for_ranges(context, N, 256, [&](int64_t n0, int64_t n1) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t n = n0; n < n1; ++n) {
        out.data<float>()[n] += x.data<float>()[t * N + n];
      }
    }
  });
}

}  // namespace wick::cpu
