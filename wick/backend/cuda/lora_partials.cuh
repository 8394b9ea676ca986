// Sums over rows in two stages, so that they do not depend on which block ends first: each run of
// rows leaves its sums in scratch memory, and a second kernel adds these in order.
#pragma once

#include <cstdint>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {

// out[c,r] (or out[r,c], for A) += scaling sum_p partials[p,c,r], r < rank.
struct PartialSums {
  const float* partials = nullptr;  // [runs, channels, stride]
  int runs = 0;
  int channels = 0;
  int stride = 0;  // the rank, rounded up to 4
  int rank = 0;
  bool rank_first = false;  // out is [rank, channels]
  float scaling = 1.0F;
  float* out = nullptr;
  int64_t out_stride = 0;  // of a row
};

// Both gradients of an adapter in one launch, right after that of the partial sums; bound by
// reading the partial sums once.
void add_partials(const Context& context, const PartialSums& a, const PartialSums& b);

}  // namespace wick::cuda
