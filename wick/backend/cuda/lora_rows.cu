// LoRA forward of a few rows in one launch, bound by latency: one trip to memory for x, A, B and y.
//
// A cluster of up to 8 blocks takes a group of rows. Each block shrinks over its slice of the
// channels, the blocks add each other's partial sums through distributed shared memory, and each
// expands into its slice of the outputs, whose first columns it has asked for at the start. With
// many groups a cluster is one block.
#include "wick/backend/cuda/lora_rows.cuh"

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"

namespace wick::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct RowsArgs {
  const void* x;
  void* s;
  void* y;
  const int32_t* row_adapter;  // null: adapter 0, and then a group may be several rows
  int64_t rows;
  int in, out;
  int s_stride;
  int width;  // of a row of s in shared memory
  bool vector_x;
  ForwardParts parts;
  AdapterTable adapters;
};

// A thread's output column: 16 ranks of B's row n, and y of the group's rows.
template <class T, int ROWS>
struct Column {
  float4 b[4];
  T y[ROWS];
};

template <class T, int ROWS>
__device__ __forceinline__ void fetch(const float* b_row, int ranks, const T* y, int64_t y_stride,
                                      int valid, bool with_y, Column<T, ROWS>& column) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * i < ranks) {
      column.b[i] = reinterpret_cast<const float4*>(b_row)[i];
    }
  }
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    column.y[row] = with_y ? y[min(row, valid - 1) * y_stride] : from_float<T>(0.0F);
  }
}

// sums[row] = low[row] . b_row, where `column` has the first ranks if rows of B are aligned.
template <class T, int ROWS>
__device__ __forceinline__ void expand_column(const float* b_row, int rank, bool vector,
                                              const Column<T, ROWS>& column, const float* low,
                                              int width, float (&sums)[ROWS]) {
  const float4* low4 = reinterpret_cast<const float4*>(low);
  if (vector) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * i < rank) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          sums[row] = dot4(column.b[i], low4[row * width / 4 + i], sums[row]);
        }
      }
    }
    for (int i = 4; 4 * i < rank; ++i) {
      const float4 b = reinterpret_cast<const float4*>(b_row)[i];
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        sums[row] = dot4(b, low4[row * width / 4 + i], sums[row]);
      }
    }
    return;
  }
  for (int r = 0; r < rank; ++r) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      sums[row] = fmaf(b_row[r], low[row * width + r], sums[row]);
    }
  }
}

// Rows that no adapter changes.
template <class T>
__device__ void write_zeros(T* y, int begin, int end) {
  for (int n = begin + threadIdx.x; n < end; n += kThreads) {
    y[n] = from_float<T>(0.0F);
  }
}

// Fills low[ROWS][width] from x, and s; the cluster must wait once more before a block ends.
template <class T, int ROWS, int RANKS>
__device__ __forceinline__ void shrink_group(const RowsArgs& args, const AdapterView& adapter,
                                             int64_t t0, int valid, float* partial, float* low) {
  const int rank = cluster_rank();
  const int blocks = cluster_blocks();
  const int count = static_cast<int>(ceil_div(ceil_div(args.in, blocks), 4) * 4);
  const int begin = min(args.in, rank * count);
  const ShrinkSlice slice{
      begin, min(args.in, begin + count), args.in, int(threadIdx.x) / 32, kWarps, args.vector_x};
  shrink_slice<ROWS, RANKS>(static_cast<const T*>(args.x) + t0 * args.in, valid, adapter, slice,
                            partial, args.width);
  cluster_arrive();
  cluster_wait();
  T* s = static_cast<T*>(args.s) + t0 * args.s_stride;
  for (int i = threadIdx.x; i < ROWS * adapter.rank; i += kThreads) {
    const int row = i / adapter.rank;
    const int r = i - row * adapter.rank;
    float sum = 0.0F;
    for (int peer = 0; peer < blocks; ++peer) {
      sum += load_of_peer(partial + row * args.width + r, peer);
    }
    low[row * args.width + r] = sum;
    if (rank == 0 && row < valid) {
      s[static_cast<int64_t>(row) * args.s_stride + r] = from_float<T>(sum);
    }
  }
  cluster_arrive_relaxed();
}

template <class TX, class TY, int ROWS, int RANKS>
__global__ void __launch_bounds__(kThreads) forward_rows(const __grid_constant__ RowsArgs args) {
  extern __shared__ float4 shared[];
  float* partial = reinterpret_cast<float*>(shared);
  float* low = partial + ROWS * args.width;
  const int rank = cluster_rank();
  const int blocks = cluster_blocks();
  const int64_t t0 = static_cast<int64_t>(blockIdx.x / blocks) * ROWS;
  const int valid = static_cast<int>(min(static_cast<int64_t>(ROWS), args.rows - t0));
  const int count = static_cast<int>(ceil_div(ceil_div(args.out, blocks), 32) * 32);
  const int begin = min(args.out, rank * count);
  const int end = min(args.out, begin + count);
  TY* y = static_cast<TY*>(args.y) + t0 * args.out;

  const int chosen = args.row_adapter == nullptr ? 0 : args.row_adapter[t0];
  const int index = chosen - args.adapters.first;
  if (chosen < 0 || index < 0 || index >= args.adapters.count) {
    if (chosen < 0 && args.adapters.first == 0 && args.parts.expand && !args.parts.accumulate) {
      write_zeros(y, begin, end);
    }
    return;
  }
  const AdapterView adapter = args.adapters.of[index];
  const bool vector = adapter.rank % 4 == 0 && reinterpret_cast<uintptr_t>(adapter.b) % 16 == 0;
  const int ranks = vector ? adapter.rank : 0;
  const auto b_row = [&](int n) { return adapter.b + static_cast<int64_t>(n) * adapter.rank; };
  const bool with_y = args.parts.accumulate;

  int n = args.parts.expand ? begin + static_cast<int>(threadIdx.x) : end;
  Column<TY, ROWS> column;
  if (n < end) {
    fetch(b_row(n), ranks, y + n, args.out, valid, with_y, column);
  }
  if (args.parts.shrink) {
    shrink_group<TX, ROWS, RANKS>(args, adapter, t0, valid, partial, low);
  } else {
    for (int i = threadIdx.x; i < ROWS * adapter.rank; i += kThreads) {
      const int row = i / adapter.rank;
      const int r = i - row * adapter.rank;
      const int64_t t = t0 + min(row, valid - 1);
      low[row * args.width + r] = to_float(static_cast<const TX*>(args.s)[t * args.s_stride + r]);
    }
  }
  __syncthreads();
  while (n < end) {
    float sums[ROWS] = {};
    expand_column(b_row(n), adapter.rank, vector, column, low, args.width, sums);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      if (row < valid) {
        y[static_cast<int64_t>(row) * args.out + n] =
            from_float<TY>(fmaf(adapter.scaling, sums[row], to_float(column.y[row])));
      }
    }
    n += kThreads;
    if (n < end) {
      fetch(b_row(n), ranks, y + n, args.out, valid, with_y, column);
    }
  }
  if (args.parts.shrink) {
    cluster_wait();
  }
}

// As many blocks a cluster as leave no more than about four blocks a multiprocessor.
unsigned blocks_of_cluster(const Context& context, int64_t groups) {
  unsigned blocks = context.compute_capability >= 90 ? 8 : 1;
  while (blocks > 1 && groups * blocks > 4 * context.multiprocessors) {
    blocks /= 2;
  }
  return blocks;
}

template <class TX, class TY, int ROWS>
void launch_rows(const Context& context, int rank, const RowsArgs& args) {
  const int64_t groups = ceil_div(args.rows, ROWS);
  const unsigned blocks = blocks_of_cluster(context, groups);
  const auto kernel = rank <= kWarps       ? forward_rows<TX, TY, ROWS, 1>
                      : rank <= 2 * kWarps ? forward_rows<TX, TY, ROWS, 2>
                                           : forward_rows<TX, TY, ROWS, 4>;
  launch_clusters(kernel, static_cast<unsigned>(groups * blocks), kThreads, blocks,
                  2 * ROWS * args.width * sizeof(float), context.stream, false, args);
  check_launch("lora_forward_rows");
}

template <class TX, class TY>
void launch_groups(const Context& context, int rank, const RowsArgs& args) {
  if (args.row_adapter != nullptr) {
    launch_rows<TX, TY, 1>(context, rank, args);
  } else {
    launch_rows<TX, TY, 4>(context, rank, args);
  }
}

}  // namespace

void lora_forward_rows(const Context& context, const Tensor& x,
                       std::span<const LoraFactors> adapters, const Tensor& row_adapter,
                       const ForwardParts& parts, const Tensor& s, const Tensor& y) {
  const Tensor& rows = parts.shrink ? x : s;
  if (rows.rows() == 0) {
    return;
  }
  const int rank = widest(adapters);
  RowsArgs args{};
  args.x = parts.shrink ? x.address() : nullptr;
  args.s = s.address();
  args.y = parts.expand ? y.address() : nullptr;
  args.row_adapter = row_adapter ? row_adapter.data<int32_t>() : nullptr;
  args.rows = rows.rows();
  args.in = parts.shrink ? static_cast<int>(x.columns()) : 0;
  args.out = parts.expand ? static_cast<int>(y.columns()) : 0;
  args.s_stride = static_cast<int>(s.columns());
  args.width = static_cast<int>(ceil_div(rank, 4) * 4);
  args.parts = parts;
  const bool narrow = rows.dtype() == DType::bf16;
  args.vector_x = args.in % 4 == 0 && aligned_to(args.x, narrow ? 8 : 16);
  for (const LoraFactors& adapter : adapters) {
    args.vector_x = args.vector_x && aligned_to(adapter.a.address(), 16);
  }
  const bool narrow_y = parts.expand ? y.dtype() == DType::bf16 : narrow;
  for (size_t first = 0; first < adapters.size(); first += AdapterTable::kMost) {
    args.adapters = table_of(adapters, first);
    if (!narrow) {
      launch_groups<float, float>(context, rank, args);
    } else if (narrow_y) {
      launch_groups<__nv_bfloat16, __nv_bfloat16>(context, rank, args);
    } else {
      launch_groups<__nv_bfloat16, float>(context, rank, args);
    }
  }
}

}  // namespace wick::cuda
