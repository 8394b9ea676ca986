// Sums over the rows of a tensor, column by column, added to f32 outputs in a fixed order.
//
// Two stages: a block sums some rows of 32 runs of columns, its eight warps every eighth row each;
// then one thread a column adds the blocks' sums in order. With few rows the first stage adds to
// the outputs itself. How the rows are shared out depends on the shape alone.
#pragma once

#include "wick/backend/cuda/rows.cuh"

namespace wick::cuda {

constexpr int kColumnWarps = 8;

template <int kSums>
struct ColumnOutputs {
  float* to[kSums];  // null: not wanted
};

// Terms::add<kWidth>(t, c, sums) adds the terms of row t and columns [c, c + kWidth).
// partial: [gridDim.y, kSums, C], or null where gridDim.y is 1.
template <int kWidth, class Terms>
__global__ void __launch_bounds__(32 * kColumnWarps)
    column_sums_kernel(Terms terms, int64_t rows, int64_t rows_a_block, int C, float* partial,
                       ColumnOutputs<Terms::kSums> outputs) {
  constexpr int kSums = Terms::kSums;
  __shared__ float parts[kColumnWarps][kWidth][33];
  const int64_t c = (int64_t{blockIdx.x} * 32 + threadIdx.x) * kWidth;
  const int64_t end = min(rows, (blockIdx.y + 1) * rows_a_block);
  float sums[kSums][kWidth] = {};
  if (c < C) {
#pragma unroll 4
    for (int64_t t = blockIdx.y * rows_a_block + threadIdx.y; t < end; t += kColumnWarps) {
      terms.add(t, c, sums);
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    if (s > 0) {
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      parts[threadIdx.y][i][threadIdx.x] = sums[s][i];
    }
    __syncthreads();
    // Warp i adds up column i of each run (kWidth is 1 or the number of warps).
    const int i = threadIdx.y;
    if (i < kWidth && c < C) {
      float sum = parts[0][i][threadIdx.x];
#pragma unroll
      for (int warp = 1; warp < kColumnWarps; ++warp) {
        sum += parts[warp][i][threadIdx.x];
      }
      if (partial != nullptr) {
        partial[(int64_t{blockIdx.y} * kSums + s) * C + c + i] = sum;
      } else if (outputs.to[s] != nullptr) {
        outputs.to[s][c + i] += sum;
      }
    }
  }
}

template <int kSums>
__global__ void __launch_bounds__(128)
    add_partial_sums_kernel(const float* __restrict__ partial, int parts, int C,
                            ColumnOutputs<kSums> outputs) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= C) {
    return;
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
      sum += partial[(int64_t{part} * kSums + s) * C + c];
    }
    if (outputs.to[s] != nullptr) {
      outputs.to[s][c] += sum;
    }
  }
}

// outputs[s][c] += sum over rows of the terms. `runs` (see in_runs) says whether Terms may be asked
// for eight columns at once.
template <class Terms>
void add_columns(const Context& context, const Terms& terms, int64_t rows, int64_t C, bool runs,
                 const ColumnOutputs<Terms::kSums>& outputs) {
  if (rows == 0 || C == 0) {
    return;
  }
  constexpr int kSums = Terms::kSums;
  const int64_t across = ceil_div(C, runs ? 256 : 32);
  const int64_t down =
      std::clamp<int64_t>(ceil_div(256, across), 1, std::min<int64_t>(64, ceil_div(rows, 16)));
  const int64_t rows_a_block = ceil_div(rows, down);
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down));
  const dim3 block(32, kColumnWarps);
  const Scratch scratch(context, down * kSums * C * sizeof(float));
  float* partial = down > 1 ? scratch.as<float>() : nullptr;
  const auto columns = static_cast<int>(C);
  if (runs) {
    column_sums_kernel<8>
        <<<grid, block, 0, context.stream>>>(terms, rows, rows_a_block, columns, partial, outputs);
  } else {
    column_sums_kernel<1>
        <<<grid, block, 0, context.stream>>>(terms, rows, rows_a_block, columns, partial, outputs);
  }
  check_launch("column_sums");
  if (down > 1) {
    add_partial_sums_kernel<kSums>
        <<<static_cast<unsigned>(ceil_div(C, 128)), 128, 0, context.stream>>>(
            partial, static_cast<int>(down), columns, outputs);
    check_launch("add_partial_sums");
  }
}

}  // namespace wick::cuda
