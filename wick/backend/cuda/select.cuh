// Scans over a block, and the selection of a threshold among ranked tokens by one block.
//
// Tokens are ranked by a 64-bit key: the logit in the order of its bits, then the smaller id.
// Weights are integers, so that sums do not depend on the order in which atomic additions happen.
#pragma once

#include <cmath>
#include <cstdint>

#include "wick/backend/cuda/fast_exp.cuh"

namespace wick::cuda {

using Mass = unsigned long long;  // as atomicAdd wants it

constexpr int kSelectThreads = 1024;
constexpr float kMassScale =
    0x1p40F;  // the mass of the largest logit; 2^24 of them do not overflow

// Larger logits have larger keys, and among equals smaller ids; NaN is below all.
__device__ __forceinline__ Mass key_of(float logit, int64_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0F);  // -0 becomes 0
  const uint32_t order = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
  return Mass{isnan(logit) ? 0U : order} << 32 | ~static_cast<uint32_t>(id);
}

__device__ __forceinline__ int64_t id_of(Mass key) {
  return ~static_cast<uint32_t>(key);
}

__device__ __forceinline__ float logit_of(Mass key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  return order == 0 ? NAN : __uint_as_float((order >> 31) != 0 ? order ^ 0x80000000U : ~order);
}

// How likely a logit is beside the largest one: e^-((largest - logit) scale).
struct Likelihood {
  float largest;
  float scale;  // 1 / temperature

  // NaN where the logit is, or where nothing compares.
  __device__ __forceinline__ float drop(float logit) const {
    return logit == largest ? 0.0F : (largest - logit) * scale;
  }
  // In units of 2^-40; 0 for what is less than half of one.
  __device__ __forceinline__ Mass mass(float logit) const {
    const float distance = drop(logit);
    return distance < 30.0F ? __float2ull_rn(fast_exp(-distance) * kMassScale) : 0;
  }
};

// The sum over threads up to this one. `parts` is shared memory for 32; all threads call it, and
// may use `parts` again after the next barrier. `total` becomes the sum over the block.
__device__ __forceinline__ Mass scan_block(Mass value, Mass* parts, Mass& total) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const Mass before = __shfl_up_sync(~0U, value, offset);
    value += lane >= offset ? before : 0;
  }
  if (lane == 31) {
    parts[warp] = value;
  }
  __syncthreads();
  total = 0;
  Mass before = 0;
  for (unsigned other = 0; other < blockDim.x / 32; ++other) {
    before += other < warp ? parts[other] : 0;
    total += parts[other];
  }
  return before + value;
}

// The largest value of the block; `parts` as above.
__device__ __forceinline__ Mass largest_of_block(Mass value, Mass* parts) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = max(value, __shfl_xor_sync(~0U, value, offset));
  }
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
    value = max(value, parts[warp]);
  }
  return value;
}

// `share` of the total, rounded up, but at least the lightest that is anything.
__device__ __forceinline__ Mass part_of(Mass total, float share) {
  const double wanted = ceil(double{share} * static_cast<double>(total));
  return min(max(static_cast<Mass>(fmax(wanted, 1.0)), Mass{1}), total);
}

struct SelectMemory {
  Mass bins[kSelectThreads];
  Mass parts[3][32];
  Mass low, high, wanted;
};

// The largest key t such that the weights of the `count` keys in [t, infinity) reach `wanted`, of
// keys that are at least `floor`. weight(key) > 0; 0 < wanted <= the sum of all weights. A block of
// kSelectThreads calls it. Each round spreads the keys that are still in question over 1024 bins by
// the ten highest bits in which they differ, and goes on in the bin where the sum is reached.
template <class Weight>
__device__ Mass select_key(const Mass* keys, int count, Mass floor, Mass wanted,
                           const Weight& weight, SelectMemory& memory) {
  Mass low = floor;
  Mass high = ~Mass{0};
  while (true) {
    Mass least = ~Mass{0};
    Mass most = 0;
    for (int i = threadIdx.x; i < count; i += kSelectThreads) {
      if (keys[i] >= low && keys[i] <= high) {
        least = min(least, keys[i]);
        most = max(most, keys[i]);
      }
    }
    memory.bins[threadIdx.x] = 0;
    low = ~largest_of_block(~least, memory.parts[0]);
    high = largest_of_block(most, memory.parts[1]);
    if (low >= high) {
      return high;
    }
    const int shift = max(0, 54 - __clzll(static_cast<long long>(low ^ high)));
    for (int i = threadIdx.x; i < count; i += kSelectThreads) {
      if (keys[i] >= low && keys[i] <= high) {
        atomicAdd(&memory.bins[(keys[i] >> shift) % kSelectThreads], weight(keys[i]));
      }
    }
    __syncthreads();
    const int bin = kSelectThreads - 1 - static_cast<int>(threadIdx.x);
    const Mass own = memory.bins[bin];
    Mass total = 0;
    const Mass reached = scan_block(own, memory.parts[2], total);
    if (reached >= wanted && reached - own < wanted) {
      const Mass base = (high >> shift) / kSelectThreads * kSelectThreads + bin;
      memory.low = max(low, base << shift);
      memory.high = min(high, (base << shift) + ((Mass{1} << shift) - 1));
      memory.wanted = wanted - (reached - own);
    }
    __syncthreads();
    low = memory.low;
    high = memory.high;
    wanted = memory.wanted;
  }
}

}  // namespace wick::cuda
