// LoRA forward of a few rows in one launch, bound by latency: one trip to memory for x, A, B and y.
//
// A cluster of up to 8 blocks takes a group of rows. Each block shrinks over its slice of the
// channels and writes its sums into the shared memory of all blocks; each adds them up and expands
// into its slice of the outputs, whose first columns it has asked for at the start. With many
// groups a cluster is one block.
#include "wick/backend/cuda/lora_rows.cuh"

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"

namespace wick::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBlocks = 8;  // of a cluster

// Adapters of a launch where rows name theirs.
constexpr int kTableAdapters = 64;

template <int MOST>
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
  AdapterTable<MOST> adapters;
};

// A group is one row with an adapter of its own, or several rows of one adapter.
template <int ROWS>
using RowsArgsOf = RowsArgs<ROWS == 1 ? kTableAdapters : 1>;

// PARTS neighbouring lanes share an output column: each takes every PARTS-th quad of its ranks, and
// at last, of a group of several rows, one of the rows.
template <int ROWS, int PARTS>
constexpr int kOwnRows = PARTS == 1 ? ROWS : 1;

// A thread's part of B's row n, the first of it, and y of the rows that it will store.
template <class T, int ROWS, int PARTS>
struct Column {
  float4 b[4];
  T y[kOwnRows<ROWS, PARTS>];
};

// The i-th row that a thread stores, or -1.
template <int ROWS, int PARTS>
__device__ __forceinline__ int own_row(int i) {
  const int part = static_cast<int>(threadIdx.x) % PARTS;
  return PARTS == 1 ? i : part < ROWS ? part : -1;
}

template <class T, int ROWS, int PARTS>
__device__ __forceinline__ void fetch(const float* b_row, int ranks, const T* y, int64_t y_stride,
                                      int valid, bool with_y, Column<T, ROWS, PARTS>& column) {
  const int part = static_cast<int>(threadIdx.x) % PARTS;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * (part + PARTS * i) < ranks) {
      column.b[i] = reinterpret_cast<const float4*>(b_row)[part + PARTS * i];
    }
  }
#pragma unroll
  for (int i = 0; i < kOwnRows<ROWS, PARTS>; ++i) {
    const int row = max(0, min(own_row<ROWS, PARTS>(i), valid - 1));
    column.y[i] = with_y ? y[row * y_stride] : from_float<T>(0.0F);
  }
}

// sums[row] = low[row] . b_row over this thread's ranks, where `column` has the first of them if
// rows of B are aligned.
template <class T, int ROWS, int PARTS>
__device__ __forceinline__ void expand_column(const float* b_row, int rank, bool vector,
                                              const Column<T, ROWS, PARTS>& column,
                                              const float* low, int width, float (&sums)[ROWS]) {
  const int part = static_cast<int>(threadIdx.x) % PARTS;
  const float4* low4 = reinterpret_cast<const float4*>(low);
  if (vector) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int quad = part + PARTS * i;
      if (4 * quad < rank) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          sums[row] = dot4(column.b[i], low4[row * width / 4 + quad], sums[row]);
        }
      }
    }
    for (int quad = part + 4 * PARTS; 4 * quad < rank; quad += PARTS) {
      const float4 b = reinterpret_cast<const float4*>(b_row)[quad];
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        sums[row] = dot4(b, low4[row * width / 4 + quad], sums[row]);
      }
    }
    return;
  }
  for (int r = part; r < rank; r += PARTS) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      sums[row] = fmaf(b_row[r], low[row * width + r], sums[row]);
    }
  }
}

// Of the sums of all parts those that this thread stores.
template <int ROWS, int PARTS>
__device__ __forceinline__ void join_parts(const float (&sums)[ROWS],
                                           float (&own)[kOwnRows<ROWS, PARTS>]) {
  if constexpr (PARTS == 1) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      own[row] = sums[row];
    }
  } else if constexpr (ROWS == 1) {
    const float pair = sums[0] + __shfl_xor_sync(0xffffffffU, sums[0], 2);
    own[0] = pair + __shfl_xor_sync(0xffffffffU, pair, 1);
  } else {
    static_assert(ROWS == 4 && PARTS == 4);
    const bool upper = (threadIdx.x & 2) != 0;
    const bool odd = (threadIdx.x & 1) != 0;
    const float even_row =
        (upper ? sums[2] : sums[0]) + __shfl_xor_sync(0xffffffffU, upper ? sums[0] : sums[2], 2);
    const float odd_row =
        (upper ? sums[3] : sums[1]) + __shfl_xor_sync(0xffffffffU, upper ? sums[1] : sums[3], 2);
    own[0] = (odd ? odd_row : even_row) + __shfl_xor_sync(0xffffffffU, odd ? even_row : odd_row, 1);
  }
}

// Rows that no adapter changes.
template <class T>
__device__ void write_zeros(T* y, int begin, int end) {
  for (int n = begin + threadIdx.x; n < end; n += kThreads) {
    y[n] = from_float<T>(0.0F);
  }
}

// Fills low[ROWS][width] from x, and s. The blocks of the cluster write to `parts`: each its sums,
// [rank][ROWS].
template <class T, int ROWS, int RANKS>
__device__ __forceinline__ void shrink_group(const RowsArgsOf<ROWS>& args,
                                             const AdapterView& adapter, int64_t t0, int valid,
                                             float* parts, float* low) {
  const int rank = cluster_rank();
  const int blocks = cluster_blocks();
  const int size = ROWS * args.width;
  const int count = static_cast<int>(ceil_div(ceil_div(args.in, blocks), 4) * 4);
  const int begin = min(args.in, rank * count);
  const ShrinkSlice slice{
      begin, min(args.in, begin + count), args.in, int(threadIdx.x) / 32, kWarps, args.vector_x};
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int readers = args.parts.expand ? blocks : 1;
  shrink_slice<ROWS, RANKS>(
      static_cast<const T*>(args.x) + t0 * args.in, valid, adapter, slice,
      [&](int r, const float(&sums)[ROWS]) {
        float* to = parts + rank * size + r * ROWS;
        if (lane >= readers) {
          return;
        }
        if constexpr (ROWS == 4) {
          store_to_peer({sums[0], sums[1], sums[2], sums[3]}, reinterpret_cast<float4*>(to), lane);
        } else {
          store_to_peer(sums[0], to, lane);
        }
      });
  cluster_arrive();
  cluster_wait();
  if (rank >= readers) {
    return;
  }
  T* s = static_cast<T*>(args.s) + t0 * args.s_stride;
  for (int i = threadIdx.x; i < ROWS * adapter.rank; i += kThreads) {
    const int row = i / adapter.rank;
    const int r = i - row * adapter.rank;
    const float* own = parts + r * ROWS + row;
    float of_block[kMostBlocks];
#pragma unroll
    for (int block = 0; block < kMostBlocks; ++block) {
      of_block[block] = block < blocks ? own[block * size] : 0.0F;
    }
    float sum = of_block[0];
#pragma unroll
    for (int block = 1; block < kMostBlocks; ++block) {
      sum += of_block[block];
    }
    low[row * args.width + r] = sum;
    if (rank == 0 && row < valid) {
      s[static_cast<int64_t>(row) * args.s_stride + r] = from_float<T>(sum);
    }
  }
}

template <class TX, class TY, int ROWS, int RANKS>
__global__ void __launch_bounds__(kThreads)
    forward_rows(const __grid_constant__ RowsArgsOf<ROWS> args) {
  constexpr int kParts = RANKS <= 2 ? 1 : 4;
  extern __shared__ float4 shared[];
  float* low = reinterpret_cast<float*>(shared);
  float* parts = low + ROWS * args.width;
  cluster_arrive_relaxed();  // this block has begun
  wait_for_previous();
  let_next_start();
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
    cluster_wait();
    return;
  }
  const AdapterView adapter = args.adapters.of[index];
  const bool vector = adapter.rank % 4 == 0 && reinterpret_cast<uintptr_t>(adapter.b) % 16 == 0;
  const int ranks = vector ? adapter.rank : 0;
  const auto b_row = [&](int n) { return adapter.b + static_cast<int64_t>(n) * adapter.rank; };
  const bool with_y = args.parts.accumulate;

  // In a warp all threads or none go on.
  const int warp_begin = (static_cast<int>(threadIdx.x) & ~31) / kParts;
  int first = args.parts.expand ? begin + warp_begin : end;
  int n = begin + static_cast<int>(threadIdx.x) / kParts;
  Column<TY, ROWS, kParts> column;
  if (args.parts.expand && n < end) {
    fetch(b_row(n), ranks, y + n, args.out, valid, with_y, column);
  }
  cluster_wait();  // the other blocks have begun
  if (args.parts.shrink) {
    shrink_group<TX, ROWS, RANKS>(args, adapter, t0, valid, parts, low);
  } else {
    for (int i = threadIdx.x; i < ROWS * adapter.rank; i += kThreads) {
      const int row = i / adapter.rank;
      const int r = i - row * adapter.rank;
      const int64_t t = t0 + min(row, valid - 1);
      low[row * args.width + r] = to_float(static_cast<const TX*>(args.s)[t * args.s_stride + r]);
    }
  }
  __syncthreads();
  while (first < end) {
    float sums[ROWS] = {};
    float own[kOwnRows<ROWS, kParts>];
    if (n < end) {
      expand_column(b_row(n), adapter.rank, vector, column, low, args.width, sums);
    }
    join_parts<ROWS, kParts>(sums, own);
#pragma unroll
    for (int i = 0; i < kOwnRows<ROWS, kParts>; ++i) {
      const int row = own_row<ROWS, kParts>(i);
      if (row >= 0 && row < valid && n < end) {
        y[static_cast<int64_t>(row) * args.out + n] =
            from_float<TY>(fmaf(adapter.scaling, own[i], to_float(column.y[i])));
      }
    }
    first += kThreads / kParts;
    n += kThreads / kParts;
    if (n < end) {
      fetch(b_row(n), ranks, y + n, args.out, valid, with_y, column);
    }
  }
}

// As many blocks a cluster as leave no more than two blocks a multiprocessor and have 128 channels
// each; fewer channels where rows share more than eight ranks.
template <int ROWS>
unsigned blocks_of_cluster(const Context& context, int64_t groups, int channels, int rank) {
  const int64_t eights = ROWS == 1 ? 1 : std::max<int64_t>(1, ceil_div(rank, 8));
  unsigned blocks = context.compute_capability >= 90 ? kMostBlocks : 1;
  while (blocks > 1 && (groups * blocks > 2 * context.multiprocessors ||
                        int64_t{128} * blocks > channels * eights)) {
    blocks /= 2;
  }
  return blocks;
}

template <class TX, class TY, int ROWS>
void launch_rows(const Context& context, int rank, const RowsArgsOf<ROWS>& args) {
  const int64_t groups = ceil_div(args.rows, ROWS);
  const unsigned blocks =
      blocks_of_cluster<ROWS>(context, groups, std::max(args.in, args.out), rank);
  const auto kernel = rank <= kWarps       ? forward_rows<TX, TY, ROWS, 1>
                      : rank <= 2 * kWarps ? forward_rows<TX, TY, ROWS, 2>
                                           : forward_rows<TX, TY, ROWS, 4>;
  launch_clusters(kernel, static_cast<unsigned>(groups * blocks), kThreads, blocks,
                  (1 + blocks) * ROWS * args.width * sizeof(float), context.stream,
                  context.compute_capability >= 90, args);
  check_launch("lora_forward_rows");
}

struct Forward {
  const Tensor &x, &row_adapter;
  std::span<const LoraFactors> adapters;
  ForwardParts parts;
  const Tensor &s, &y;
};

template <int MOST>
RowsArgs<MOST> args_of(const Forward& call) {
  const ForwardParts& parts = call.parts;
  const Tensor& rows = parts.shrink ? call.x : call.s;
  RowsArgs<MOST> args{};
  args.x = parts.shrink ? call.x.address() : nullptr;
  args.s = call.s.address();
  args.y = parts.expand ? call.y.address() : nullptr;
  args.row_adapter = call.row_adapter ? call.row_adapter.template data<int32_t>() : nullptr;
  args.rows = rows.rows();
  args.in = parts.shrink ? static_cast<int>(call.x.columns()) : 0;
  args.out = parts.expand ? static_cast<int>(call.y.columns()) : 0;
  args.s_stride = static_cast<int>(call.s.columns());
  args.width = static_cast<int>(ceil_div(widest(call.adapters), 4) * 4);
  args.parts = parts;
  args.vector_x = args.in % 4 == 0 && aligned_to(args.x, rows.dtype() == DType::bf16 ? 8 : 16);
  for (const LoraFactors& adapter : call.adapters) {
    args.vector_x = args.vector_x && aligned_to(adapter.a.address(), 16);
  }
  return args;
}

template <int ROWS>
void launch_groups(const Context& context, const Forward& call) {
  constexpr int kMost = ROWS == 1 ? kTableAdapters : 1;
  RowsArgs<kMost> args = args_of<kMost>(call);
  const int rank = widest(call.adapters);
  const bool narrow = (call.parts.shrink ? call.x : call.s).dtype() == DType::bf16;
  const bool narrow_y = call.parts.expand ? call.y.dtype() == DType::bf16 : narrow;
  const size_t adapters = call.row_adapter ? call.adapters.size() : 1;
  for (size_t first = 0; first < adapters; first += kMost) {
    args.adapters = table_of<kMost>(call.adapters, first);
    if (!narrow) {
      launch_rows<float, float, ROWS>(context, rank, args);
    } else if (narrow_y) {
      launch_rows<__nv_bfloat16, __nv_bfloat16, ROWS>(context, rank, args);
    } else {
      launch_rows<__nv_bfloat16, float, ROWS>(context, rank, args);
    }
  }
}

}  // namespace

void lora_forward_rows(const Context& context, const Tensor& x,
                       std::span<const LoraFactors> adapters, const Tensor& row_adapter,
                       const ForwardParts& parts, const Tensor& s, const Tensor& y) {
  if ((parts.shrink ? x : s).rows() == 0) {
    return;
  }
  const Forward call{x, row_adapter, adapters, parts, s, y};
  if (row_adapter) {
    launch_groups<1>(context, call);
  } else {
    launch_groups<4>(context, call);
  }
}

}  // namespace wick::cuda
