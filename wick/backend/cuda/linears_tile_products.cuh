// What a warp of linears_tiles.cuh multiplies: the tile's shape, the copies of its operands through
// a ring of each lane's own, and the products.
#pragma once

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/linears_kernel.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kTileDepth = 32;  // of K, in a step of a warp
constexpr int kTileChannels = 32;

// A step of a warp is ROWS16 x 4 x 2 matrix products of 16 x 8 x 16. With 32 rows a multiprocessor
// takes two blocks, with 64 one: two would share what others have for themselves. RANKS8: eights of
// ranks of A; 0: s is there.
template <int ROWS16, int RANKS8>
struct TileShape {
  static constexpr int kRows = 16 * ROWS16;
  static constexpr int kChannels = kTileChannels;
  static constexpr int kRanks8 = RANKS8;
  static constexpr int kColumns = kChannels + 8 * RANKS8;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRingBytes = ROWS16 * 48 * 1024;
  static constexpr int kResident = ROWS16 <= 2 ? 2 : 1;
  // Of 16 bytes, by each lane in a step: rows 8 i + g of x, then of the weight, then of A (two
  // loads a row); values 8 q to 8 q + 7.
  static constexpr int kLoadsX = 2 * ROWS16;
  static constexpr int kLoadsA = kLoadsX + kChannels / 8;  // the first of A
  static constexpr int kLoads = kLoadsA + 2 * RANKS8;
  static constexpr int kStages = kRingBytes / (kLoads * 16 * kThreads);
  // Of a row of sums: 8 or 24 banks on, so that none is met twice.
  static constexpr int kStride = RANKS8 <= 1 ? 40 : 56;
  static constexpr int kRowQuads = kColumns / 4;
  static constexpr int kQuads = kRows * kRowQuads;
  static constexpr int kSumBytes = 4 * kWarps * kRows * kStride;
  static_assert(kSumBytes <= kRingBytes && RANKS8 <= 2);
  static constexpr size_t kSharedBytes = kRingBytes + size_t{16} * kQuads;

  using Sums = float[ROWS16][kColumns / 8][4];  // as mma holds them
};

// A lane's share of an operand: rows 8 i + g below `count`, values 8 q to 8 q + 7 of each step.
template <class T>
struct TileOperand {
  const T* first;
  int count;
};

template <class T>
__device__ __forceinline__ TileOperand<T> operand_of(const T* values, int count, int in) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  return {values + lane / 4 * static_cast<int64_t>(in) + 8 * (lane % 4), count - lane / 4};
}

struct TileOperands {
  TileOperand<__nv_bfloat16> x, w;
  TileOperand<float> a;
  int in;
};

__device__ __forceinline__ bool inside(const TileOperands& operands, int k) {
  return k + 8 * static_cast<int>(threadIdx.x & 3) < operands.in;
}

template <class Tile>
__device__ __forceinline__ void copy_rows(const TileOperands& operands, int k, uint32_t to) {
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX; ++i) {
    const bool valid = inside(operands, k) && 8 * i < operands.x.count;
    const __nv_bfloat16* row = operands.x.first + int64_t{8} * i * operands.in;
    copy16_async(to + i * 16 * Tile::kThreads, valid ? row + k : operands.x.first, valid);
  }
}

// Of the weight and of A.
template <class Tile>
__device__ __forceinline__ void copy_weights(const TileOperands& operands, int k, uint32_t to) {
#pragma unroll
  for (int i = 0; i < Tile::kChannels / 8; ++i) {
    const bool valid = inside(operands, k) && 8 * i < operands.w.count;
    const __nv_bfloat16* row = operands.w.first + int64_t{8} * i * operands.in;
    copy16_async(to + (Tile::kLoadsX + i) * 16 * Tile::kThreads, valid ? row + k : operands.w.first,
                 valid);
  }
#pragma unroll
  for (int i = 0; i < 2 * Tile::kRanks8; ++i) {
    const bool valid = inside(operands, k) && 8 * (i / 2) < operands.a.count;
    const float* row = operands.a.first + int64_t{8} * (i / 2) * operands.in + 4 * (i % 2);
    const void* elsewhere = operands.w.first;
    copy16_async(to + (Tile::kLoadsA + i) * 16 * Tile::kThreads, valid ? row + k : elsewhere,
                 valid);
  }
}

// sums[i] += 16 rows of x times the eight rows that `w` has of the other operand.
template <class Tile>
__device__ __forceinline__ void multiply_eight(const uint4 (&x)[Tile::kLoadsX], const uint4& w,
                                               int j, typename Tile::Sums& sums) {
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX / 2; ++i) {
    const uint4& upper = x[2 * i];
    const uint4& lower = x[2 * i + 1];
    multiply_16x8x16(upper.x, lower.x, upper.y, lower.y, w.x, w.y, sums[i][j]);
    multiply_16x8x16(upper.z, lower.z, upper.w, lower.w, w.z, w.w, sums[i][j]);
  }
}

// Two floats as bf16, and what that leaves of them.
__device__ __forceinline__ uint32_t split_pair(float a, float b, uint32_t& rest) {
  const uint32_t rounded = pack_bf16(a, b);
  rest = pack_bf16(a - low_bf16(rounded), b - high_bf16(rounded));
  return rounded;
}

__device__ __forceinline__ uint4 split_eight(const uint4& first, const uint4& second, uint4& rest) {
  const auto value = [](uint32_t word) { return __uint_as_float(word); };
  return {split_pair(value(first.x), value(first.y), rest.x),
          split_pair(value(first.z), value(first.w), rest.y),
          split_pair(value(second.x), value(second.y), rest.z),
          split_pair(value(second.z), value(second.w), rest.w)};
}

template <class Tile>
__device__ __forceinline__ void multiply_step(uint32_t from, typename Tile::Sums& sums) {
  constexpr int kChannels8 = Tile::kChannels / 8;
  constexpr int kSlot = 16 * Tile::kThreads;
  uint4 x[Tile::kLoadsX];
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX; ++i) {
    x[i] = read_shared(from + i * kSlot);
  }
#pragma unroll
  for (int j = 0; j < kChannels8; ++j) {
    multiply_eight<Tile>(x, read_shared(from + (Tile::kLoadsX + j) * kSlot), j, sums);
  }
#pragma unroll
  for (int j = 0; j < Tile::kRanks8; ++j) {
    const uint32_t at = from + (Tile::kLoadsA + 2 * j) * kSlot;
    uint4 rest;
    const uint4 a = split_eight(read_shared(at), read_shared(at + kSlot), rest);
    multiply_eight<Tile>(x, a, kChannels8 + j, sums);
    multiply_eight<Tile>(x, rest, kChannels8 + j, sums);
  }
}

// A warp's steps begin, begin + kWarps, ... below `end`. Where s is made here, x may be what the
// kernel before writes.
template <class Tile>
__device__ __forceinline__ void multiply_range(const TileOperands& operands, int begin, int end,
                                               uint32_t ring, typename Tile::Sums& sums) {
  constexpr int kStages = Tile::kStages;
  constexpr int kStageBytes = Tile::kLoads * 16 * Tile::kThreads;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (const int step = begin + i * Tile::kWarps; step < end) {
      copy_weights<Tile>(operands, step * kTileDepth, ring + i * kStageBytes);
    }
  }
  if constexpr (Tile::kRanks8 > 0) {
    wait_for_previous();
    let_next_start();
  }
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (const int step = begin + i * Tile::kWarps; step < end) {
      copy_rows<Tile>(operands, step * kTileDepth, ring + i * kStageBytes);
    }
    commit_copies();
  }
  int stage = 0;
  for (int step = begin; step < end; step += Tile::kWarps) {
    wait_for_copies<kStages - 1>();
    const uint32_t at = ring + stage * kStageBytes;
    multiply_step<Tile>(at, sums);
    if (const int next = step + kStages * Tile::kWarps; next < end) {
      copy_weights<Tile>(operands, next * kTileDepth, at);
      copy_rows<Tile>(operands, next * kTileDepth, at);
    }
    commit_copies();
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
}

// To rows[row][channel, then rank] of this warp's part of K.
template <class Tile>
__device__ __forceinline__ void store_sums(const typename Tile::Sums& sums, float* rows) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int i = 0; i < Tile::kRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumns / 8; ++j) {
      float* to = rows + (16 * i + g) * Tile::kStride + 8 * j + 2 * q;
      *reinterpret_cast<float2*>(to) = {sums[i][j][0], sums[i][j][1]};
      *reinterpret_cast<float2*>(to + 8 * Tile::kStride) = {sums[i][j][2], sums[i][j][3]};
    }
  }
}

}  // namespace wick::cuda
