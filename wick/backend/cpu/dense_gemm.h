// Products of f32 matrices by oneDNN, block by block in wick's own pool.
//
// oneDNN is asked for one block at a time on one thread, so it never starts a team of its own, and
// the blocks depend on the shapes alone: the bits of a result do not depend on the number of
// threads. It serves nn and tn products. A transposed right side (nt) it packs slowly: with 64 rows
// it runs at half of the rate that matmul's own panels reach, with 512 at the same.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

// Shapes and meaning as in Backend::matmul.
struct DenseProduct {
  MatmulForm form;  // nn or tn
  int64_t M, N, K;
  const float *a, *b;
  const float* bias;  // [N] or null
  bool accumulate;
  float* c;
};

// Whether multiply_dense takes this product on this machine.
bool dense_gemm_serves(MatmulForm form, int64_t K);

void multiply_dense(const Context& context, const DenseProduct& product);

}  // namespace wick::cpu
