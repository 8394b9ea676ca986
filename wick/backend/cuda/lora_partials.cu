// The second stage of the sums over rows.
#include "wick/backend/cuda/lora_partials.cuh"

#include <algorithm>

#include "wick/backend/cuda/early_launch.cuh"

namespace wick::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockValues = 4 * 32;  // sums that a block works out

__device__ __forceinline__ void add(float4& sum, float4 value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}

// Sum i of channels * stride: where it goes, or null where that is nowhere.
__device__ __forceinline__ float* target_of(const PartialSums& sums, int64_t i) {
  const int64_t c = i / sums.stride;
  const int64_t r = i - c * sums.stride;
  if (c >= sums.channels || r >= sums.rank) {
    return nullptr;
  }
  return sums.out + (sums.rank_first ? r * sums.out_stride + c : c * sums.out_stride + r);
}

// Of a block's sums, the one that a thread stores: threads side by side store neighbours of a row.
__device__ __forceinline__ int stored_by(const PartialSums& sums, int thread) {
  if (!sums.rank_first || kBlockValues % sums.stride != 0) {
    return thread;
  }
  const int channels = kBlockValues / sums.stride;
  return thread % channels * sums.stride + thread / channels;
}

// Warp w of a block adds up runs w, w + kWarps, ..., four ranks a lane; then the warps' sums are
// added in order. Blocks of y = 0 do the first sums, of y = 1 the other.
__global__ void __launch_bounds__(kThreads)
    add_in_order(const __grid_constant__ PartialSums first,
                 const __grid_constant__ PartialSums second) {
  __shared__ float4 of_warps[kWarps][32];
  const PartialSums& sums = blockIdx.y == 0 ? first : second;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t size = static_cast<int64_t>(sums.channels) * sums.stride;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kBlockValues;
  if (begin >= size) {
    return;
  }
  const int own = stored_by(sums, thread);
  float* target = thread < kBlockValues ? target_of(sums, begin + own) : nullptr;
  const float before = target != nullptr ? *target : 0.0F;

  wait_for_previous();
  const int64_t i = begin + 4 * (thread % 32);
  float4 total = {0.0F, 0.0F, 0.0F, 0.0F};
  if (i < size) {
#pragma unroll 8
    for (int run = thread / 32; run < sums.runs; run += kWarps) {
      add(total, *reinterpret_cast<const float4*>(sums.partials + run * size + i));
    }
  }
  of_warps[thread / 32][thread % 32] = total;
  __syncthreads();
  if (target != nullptr) {
    const float* values = reinterpret_cast<const float*>(of_warps) + own;
    float sum = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += values[warp * kBlockValues];
    }
    *target = fmaf(sums.scaling, sum, before);
  }
}

}  // namespace

void add_partials(const Context& context, const PartialSums& a, const PartialSums& b) {
  const int64_t most = std::max(static_cast<int64_t>(a.channels) * a.stride,
                                static_cast<int64_t>(b.channels) * b.stride);
  const dim3 grid(static_cast<unsigned>((most + kBlockValues - 1) / kBlockValues), 2);
  if (grid.x > 0) {
    launch_early(context, true, add_in_order, grid, kThreads, 0, a, b);
    check_launch("add_partials");
  }
}

}  // namespace wick::cuda
