// The second stage of the sums over rows.
#include "wick/backend/cuda/lora_partials.cuh"

#include <algorithm>

namespace wick::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ void add(float4& sum, float4 value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}

// A thread adds up four ranks of one channel; blocks of y = 0 do the first sums, of y = 1 the
// other.
__global__ void __launch_bounds__(kThreads)
    add_in_order(const __grid_constant__ PartialSums first,
                 const __grid_constant__ PartialSums second) {
  const PartialSums& sums = blockIdx.y == 0 ? first : second;
  const int64_t size = static_cast<int64_t>(sums.channels) * sums.stride;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  if (i >= size) {
    return;
  }
  float4 total = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 8
  for (int run = 0; run < sums.runs; ++run) {
    add(total, *reinterpret_cast<const float4*>(sums.partials + run * size + i));
  }
  const int64_t c = i / sums.stride;
  const int r0 = static_cast<int>(i - c * sums.stride);
  const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int r = r0 + j;
    if (r < sums.rank) {
      float* out =
          sums.rank_first ? sums.out + r * sums.out_stride + c : sums.out + c * sums.out_stride + r;
      *out = fmaf(sums.scaling, values[j], *out);
    }
  }
}

}  // namespace

void add_partials(const Context& context, const PartialSums& a, const PartialSums& b) {
  const int64_t quads = std::max(static_cast<int64_t>(a.channels) * a.stride,
                                 static_cast<int64_t>(b.channels) * b.stride) /
                        4;
  const dim3 grid(static_cast<unsigned>((quads + kThreads - 1) / kThreads), 2);
  if (grid.x > 0) {
    add_in_order<<<grid, kThreads, 0, context.stream>>>(a, b);
    check_launch("add_partials");
  }
}

}  // namespace wick::cuda
