// Products by oneDNN, block by block in wick's own pool.
//
// oneDNN is asked for one block at a time on one thread, so it never starts a team of its own, and
// the blocks depend on the shapes alone: the bits of a result do not depend on the number of
// threads. Of f32 it serves nn and tn products. A transposed right side (nt) it packs slowly: with
// 64 rows it runs at half of the rate that matmul's own panels reach, with 512 at the same.
//
// Of bf16 it serves nt and nn products on a CPU that has_bf16_products, at twice the rate of f32.
#pragma once

#include "wick/backend/cpu/context.h"
#include "wick/backend/cpu/narrow.h"
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

// Exact products, summed up in f32.
struct Bf16Product {
  MatmulForm form;  // nt or nn
  int64_t M, N, K;  // K > 0
  const Bf16 *a, *b;
  const float* bias;  // [N] or null
  bool accumulate;
  float* c;
};

void multiply_bf16(const Context& context, const Bf16Product& product);

}  // namespace wick::cpu
