// Linear layers over so few rows (tokens being decoded) that reading the weights is all the work:
// dot products along the weights as they are stored, at the speed of memory.
#pragma once

#include <span>

#include "wick/backend/cpu/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

constexpr int64_t kFewRows = 16;

// c = a b^T (+ c) (+ bias), a [M, K] with at most kFewRows rows.
void multiply_few_rows(const Context& context, const Tensor& a, const Tensor& b,
                       const MatmulArgs& args, const Tensor& c);

// Backend::linears for at most kFewRows rows. All terms and their adapters go through one run of
// the pool: a run a product would leave the threads waiting for each other as long as they work.
void linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms);

}  // namespace wick::cpu
