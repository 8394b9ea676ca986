// Products of f32 tiles of attention on tensor cores, each by three of TF32.
//
// A float is a TF32 number and a remainder, of which TF32 keeps 11 bits, so that
//   a b = small(a) big(b) + big(a) small(b) + big(a) big(b)
// but for some 2^-21 of it. Tensor cores round each sum toward zero. Over thousands of terms that
// would add up, so sums begin anew with each tile and are added by f32 additions.
//
// The rate of TF32 by mma.sync, 315 TF/s on an H100, is not reached: three products a product go
// with some four instructions that split operands.
#pragma once

#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

// Bytes of a row of kD elements of a tile, padded to an odd number of 16-byte chunks.
template <int kD, class T = __nv_bfloat16>
constexpr int kRowBytes = (kD * static_cast<int>(sizeof(T)) / 16 | 1) * 16;

// Where rows of a result go, by chunks of 16 bytes.
template <class T>
struct TileTarget {
  T* first;
  int64_t row_elements;
  int rows, chunks;
};

// The four words of a left operand, or of two right ones. The instruction reads the upper 19 bits
// of each.
struct SplitFragment {
  uint32_t big[4];
  uint32_t small[4];
};

__device__ __forceinline__ SplitFragment split(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  SplitFragment fragment{{w0, w1, w2, w3}, {}};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float word = __uint_as_float(fragment.big[i]);
    fragment.big[i] &= 0xffffe000U;
    fragment.small[i] = __float_as_uint(word - __uint_as_float(fragment.big[i]));
  }
  return fragment;
}

// c[16,8] += a[16,8] b[8,8] of TF32, in f32.
__device__ __forceinline__ void multiply_add_tf32(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// acc(i, j) += left[i] times right operand j, the half j % 2 of right[j / 2]. Each of the three
// products is made for all i and j in turn, since the next one waits for its sum; the largest comes
// last.
template <int kLeft, int kRight, class Accumulator>
__device__ __forceinline__ void multiply_add_split(const SplitFragment (&left)[kLeft],
                                                   const SplitFragment (&right)[kRight],
                                                   const Accumulator& acc) {
#pragma unroll
  for (int product = 0; product < 3; ++product) {
#pragma unroll
    for (int j = 0; j < 2 * kRight; ++j) {
      const auto& of_right = product == 1 ? right[j / 2].small : right[j / 2].big;
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        multiply_add_tf32(product == 0 ? left[i].small : left[i].big, of_right[j % 2 * 2],
                          of_right[j % 2 * 2 + 1], acc(i, j));
      }
    }
  }
}

// acc[i][first], acc[i][first + 1] += the products of left[i] and a pair of right operands.
template <int kBlocks, int kColumns>
__device__ __forceinline__ void multiply_add_pair(const uint32_t (&left)[kBlocks][4],
                                                  const uint32_t (&right)[4], int first,
                                                  float (&acc)[kBlocks][kColumns / 8][4]) {
  SplitFragment of_left[kBlocks];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    of_left[i] = split(left[i][0], left[i][1], left[i][2], left[i][3]);
  }
  const SplitFragment of_right[1] = {split(right[0], right[1], right[2], right[3])};
  multiply_add_split(of_left, of_right,
                     [&](int i, int j) -> float(&)[4] { return acc[i][first + j]; });
}

// acc[16 kBlocks, kD] += p[16 kBlocks, kColumns] b[kColumns, kD], where b is a tile.
//
// It is made as acc^T = b^T p^T: with the columns of a step of p in the order 0, 2, 4, 6, 1, 3, 5,
// 7, what a lane holds of p is its right operand, and of b^T a lane reads pairs of neighbours; no
// register must be moved. So lane l holds of acc[i][2m + half] the rows 8 half + 2 (l%4) (c[0],
// c[2]) and the next (c[1], c[3]), columns 16 m + 2 (l/4) (c[0], c[1]) and the next.
template <int kD, int kBlocks, int kColumns>
__device__ __forceinline__ void multiply_nn_f32(const float (&p)[kBlocks][kColumns / 8][4],
                                                uint32_t b, float (&acc)[kBlocks][kD / 8][4]) {
  constexpr int kRow = kRowBytes<kD, float>;
  static_assert(kD % 32 == 0);
  const uint32_t thread = thread_here();
  b += thread % 4 * 2 * kRow + thread % 32 / 4 * 8;
#pragma unroll
  for (int group = 0; group < kD / 32; ++group) {
    float sums[kBlocks][4][4] = {};
#pragma unroll
    for (int step = 0; step < kColumns / 8; ++step) {
      SplitFragment left[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t from = b + step * 8 * kRow + group * 128 + m * 64;
        const uint2 even = read_shared_pair(from);
        const uint2 odd = read_shared_pair(from + kRow);
        left[m] = split(even.x, even.y, odd.x, odd.y);
      }
      SplitFragment right[kBlocks];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const auto& of_step = p[i][step];
        right[i] = split(__float_as_uint(of_step[0]), __float_as_uint(of_step[1]),
                         __float_as_uint(of_step[2]), __float_as_uint(of_step[3]));
      }
      multiply_add_split(left, right, [&](int m, int half) -> float(&)[4] {
        return sums[half / 2][2 * m + half % 2];
      });
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          acc[i][4 * group + j][c] += sums[i][j][c];
        }
      }
    }
  }
}

// Of such an accumulator: times `factor`, which each lane has of row l/4 of that half of block i.
template <int kD, int kBlocks>
__device__ __forceinline__ void scale_half_f32(int i, int half, float factor,
                                               float (&acc)[kBlocks][kD / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x % 4) * 8;
  const float even = __shfl_sync(~0U, factor, lane);
  const float odd = __shfl_sync(~0U, factor, lane + 4);
#pragma unroll
  for (int j = half; j < kD / 8; j += 2) {
    acc[i][j][0] *= even;
    acc[i][j][1] *= odd;
    acc[i][j][2] *= even;
    acc[i][j][3] *= odd;
  }
}

// Writes the warp's rows of such an accumulator, in pieces of 64 bytes; it needs no stage.
template <int kD, int kBlocks>
__device__ __forceinline__ void store_rows(const float (&acc)[kBlocks][kD / 8][4],
                                           const unsigned char* /*stage*/,
                                           const TileTarget<float>& target) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = i * 16 + j % 2 * 8 + lane % 4 * 2 + c;
        const int column = j / 2 * 16 + lane / 4 * 2;
        if (row < target.rows && column < target.chunks * 4) {
          *reinterpret_cast<float2*>(target.first + row * target.row_elements + column) = {
              acc[i][j][c], acc[i][j][c + 2]};
        }
      }
    }
  }
}

}  // namespace wick::cuda
