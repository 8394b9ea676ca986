// Tiles of queries, keys and values in shared memory, and the two products of attention on them.
//
// Blocks have four warps. An accumulator acc[i][j] of a warp is its i-th block of 16 rows and its
// j-th of 8 columns; see tensor_core.cuh for what a lane holds of it. Tiles are of bf16, or of f32
// with the products of attention_tiles_f32.cuh; names without a type are of bf16.
#pragma once

#include <type_traits>

#include "wick/backend/cuda/attention_tiles_f32.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileWarps = 4;

// Where the rows of a tile come from: `rows` of them, of `chunks` x 16 bytes each; what a tile has
// more is zero.
struct TileSource {
  const void* first;
  int row_bytes;  // from row to row
  int rows, chunks;
};

template <int kD, int kRows, class T = __nv_bfloat16>
__device__ __forceinline__ void load_tile(const TileSource& source, uint32_t tile) {
  constexpr int kChunks = kD * sizeof(T) / 16;
  // Of a row; some idle at heads of 80 and 96.
  constexpr int kLanes = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;
  constexpr int kStep = kTileThreads / kLanes;  // rows
  static_assert(kLanes >= kChunks && kRows % kStep == 0);
  const uint32_t thread = thread_here();
  const int chunk = static_cast<int>(thread) % kLanes;
  const int row = static_cast<int>(thread) / kLanes;
  const int count = chunk < source.chunks ? source.rows - row : 0;
  const auto* first = reinterpret_cast<const unsigned char*>(source.first);
  uint32_t from = row * source.row_bytes + chunk * 16;
  tile += row * kRowBytes<kD, T> + chunk * 16;
  if (kLanes == kChunks || chunk < kChunks) {
#pragma unroll
    for (int i = 0; i < kRows; i += kStep) {
      copy16_async(tile + i * kRowBytes<kD, T>, first + (i < count ? from : 0), i < count);
      from += kStep * source.row_bytes;
    }
  }
}

// What a lane adds to the address of a tile's row for load_matrices: as the left operand, and
// (transposed) as the right one of multiply_nn; and as the right operand of multiply_nt. It is
// cheaper to compute where it is used than to keep.
template <int kD, class T = __nv_bfloat16>
__device__ __forceinline__ uint32_t left_lane() {
  const uint32_t thread = thread_here();
  return thread % 16 * kRowBytes<kD, T> + thread % 32 / 16 * 16;
}
template <int kD, class T = __nv_bfloat16>
__device__ __forceinline__ uint32_t right_lane() {
  const uint32_t thread = thread_here();
  return (thread % 32 / 16 * 8 + thread % 8) * kRowBytes<kD, T> + thread / 8 % 2 * 16;
}

// acc[16 kBlocks, kColumns] += a[16 kBlocks, kD] b[kColumns, kD]^T. a is a tile's row plus
// left_lane, b a tile plus right_lane. A step is 32 bytes of each row: 16 bf16 or 8 f32, which lie
// alike in the fragments of their instructions.
template <int kD, int kBlocks, int kColumns, class T = __nv_bfloat16>
__device__ __forceinline__ void multiply_nt(uint32_t a, uint32_t b,
                                            float (&acc)[kBlocks][kColumns / 8][4]) {
  constexpr int kSteps = kD * sizeof(T) / 32;
  // Two blocks leave no registers for reads far ahead.
  constexpr int kUnroll = kBlocks == 2 ? 2 : kSteps;
#pragma unroll kUnroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t left[kBlocks][4];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      load_matrices(a + i * 16 * kRowBytes<kD, T> + step * 32, left[i]);
    }
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      uint32_t right[4];
      load_matrices(b + j * 16 * kRowBytes<kD, T> + step * 32, right);
      if constexpr (std::is_same_v<T, float>) {
        multiply_add_pair<kBlocks, kColumns>(left, right, 2 * j, acc);
      } else {
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          multiply_add(left[i], right[0], right[1], acc[i][2 * j]);
          multiply_add(left[i], right[2], right[3], acc[i][2 * j + 1]);
        }
      }
    }
  }
}

// An accumulator as left operand of multiply_nn: its layout is that of bf16 fragments already.
template <int kBlocks, int kColumns>
__device__ __forceinline__ void to_fragments(const float (&acc)[kBlocks][kColumns / 8][4],
                                             uint32_t (&fragments)[kBlocks][kColumns / 16][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      fragments[i][j][0] = pack_bf16(acc[i][2 * j][0], acc[i][2 * j][1]);
      fragments[i][j][1] = pack_bf16(acc[i][2 * j][2], acc[i][2 * j][3]);
      fragments[i][j][2] = pack_bf16(acc[i][2 * j + 1][0], acc[i][2 * j + 1][1]);
      fragments[i][j][3] = pack_bf16(acc[i][2 * j + 1][2], acc[i][2 * j + 1][3]);
    }
  }
}

// acc[16 kBlocks, kD] += p[16 kBlocks, kColumns] b[kColumns, kD]. b is a tile plus left_lane.
template <int kD, int kBlocks, int kColumns>
__device__ __forceinline__ void multiply_nn(const uint32_t (&p)[kBlocks][kColumns / 16][4],
                                            uint32_t b, float (&acc)[kBlocks][kD / 8][4]) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
#pragma unroll
    for (int j = 0; j < kD / 16; ++j) {
      uint32_t right[4];
      load_matrices_transposed(b + step * 16 * kRowBytes<kD> + j * 32, right);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        multiply_add(p[i][step], right[0], right[1], acc[i][2 * j]);
        multiply_add(p[i][step], right[2], right[3], acc[i][2 * j + 1]);
      }
    }
  }
}

// acc[16 kBlocks, kD] += p[16 kBlocks, kColumns] b[kColumns, kD], where b is a tile of T: p is
// rounded to bf16, or used in full.
template <int kD, int kBlocks, int kColumns, class T>
__device__ __forceinline__ void add_weighted(const float (&p)[kBlocks][kColumns / 8][4], uint32_t b,
                                             float (&acc)[kBlocks][kD / 8][4]) {
  if constexpr (std::is_same_v<T, float>) {
    multiply_nn_f32<kD, kBlocks, kColumns>(p, b, acc);
  } else {
    uint32_t fragments[kBlocks][kColumns / 16][4];
    to_fragments<kBlocks, kColumns>(p, fragments);
    multiply_nn<kD, kBlocks, kColumns>(fragments, b + left_lane<kD>(), acc);
  }
}

// Of an accumulator of add_weighted: times `factor`, which each lane has of row l/4 of that half of
// block i.
template <int kD, class T, int kBlocks>
__device__ __forceinline__ void scale_half(int i, int half, float factor,
                                           float (&acc)[kBlocks][kD / 8][4]) {
  if constexpr (std::is_same_v<T, float>) {
    scale_half_f32<kD>(i, half, factor, acc);
  } else {
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      acc[i][j][2 * half] *= factor;
      acc[i][j][2 * half + 1] *= factor;
    }
  }
}

// Writes the warp's rows by way of `stage`: rows of a tile that only this warp has read, and reads
// no longer.
template <int kD, int kBlocks>
__device__ __forceinline__ void store_rows(const float (&acc)[kBlocks][kD / 8][4],
                                           unsigned char* stage,
                                           const TileTarget<__nv_bfloat16>& target) {
  constexpr int kChunks = kD / 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  unsigned char* mine = stage + lane / 4 * kRowBytes<kD> + lane % 4 * 4;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      unsigned char* upper = mine + i * 16 * kRowBytes<kD> + j * 16;
      *reinterpret_cast<uint32_t*>(upper) = pack_bf16(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<uint32_t*>(upper + 8 * kRowBytes<kD>) =
          pack_bf16(acc[i][j][2], acc[i][j][3]);
    }
  }
  __syncwarp();
  for (int at = lane; at < 16 * kBlocks * kChunks; at += 32) {
    const int row = at / kChunks;
    const int chunk = at % kChunks;
    if (row < target.rows && chunk < target.chunks) {
      *reinterpret_cast<uint4*>(target.first + row * target.row_elements + chunk * 8) =
          *reinterpret_cast<const uint4*>(stage + row * kRowBytes<kD> + chunk * 16);
    }
  }
}

}  // namespace wick::cuda
