// LoRA backward without tensor cores, in two launches (three for many rows). The first reads dy for
// ds and for db, the second reads x for da and adds to dx: different blocks of one grid each, so a
// few rows still fill the device. Few rows are bound by latency, many by the second trip to the
// second cache for dy.
#include <optional>

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_partials.cuh"
#include "wick/backend/cuda/lora_rows.cuh"

namespace wick::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 4;        // of a block that shrinks or expands
constexpr int kRanks = 8;       // kept in registers at a time
constexpr int kColumns = 32;    // of a block that collects: its lanes side by side
constexpr int kFewColumns = 8;  // the same where there would be few such blocks
constexpr int kRunRows = 512;   // rows that a block collects from at most, while runs are few
constexpr int kMostRuns = 32;

// g[c,r] += scaling sum_t wide[t,c] narrow[t,r]: the gradient of A (stored [R, C]) or B ([C, R]).
template <class T>
struct Collect {
  const T* wide;
  const T* narrow;
  int channels;
  int columns;  // of a block: kColumns or kFewColumns
  int runs;
  int64_t run_rows;
  bool rank_first;
  float scaling;
  float* partials;  // [runs, channels, stride]; null where there is one run
  int stride;
  float* out;
};

template <class T>
struct BackwardArgs {
  const T* wide;  // what is shrunk (dy) or added to (dx)
  T* low;         // ds
  T* dx;
  const float* factor;  // B [N, R], or A [R, K]
  int64_t rows;
  int channels;
  int rank;
  float scaling;
  bool vector;         // ranks come in aligned eights: of B, s and ds
  int collect_blocks;  // the first blocks of the grid collect, the others do the rows
  Collect<T> collect;
};

// values[i] summed over the lanes, for i = lane, in values[0]: each step halves what a lane keeps.
template <int WIDTH = 16>
__device__ __forceinline__ float transpose_sum(float (&values)[32]) {
  const bool upper = (threadIdx.x & WIDTH) != 0;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const float keep = upper ? values[i + WIDTH] : values[i];
    const float send = upper ? values[i] : values[i + WIDTH];
    values[i] = keep + __shfl_xor_sync(0xffffffffU, send, WIDTH);
  }
  if constexpr (WIDTH > 1) {
    return transpose_sum<WIDTH / 2>(values);
  }
  return values[0];
}

// Ranks [r0, r0 + 8) of a row, 0 beyond the last; VECTOR: whole and aligned to eight.
template <bool VECTOR, class T>
__device__ __forceinline__ void load_ranks(const T* row, int r0, int rank,
                                           float (&values)[kRanks]) {
  if constexpr (VECTOR) {
    load8(row + r0, values);
  } else {
#pragma unroll
    for (int j = 0; j < kRanks; ++j) {
      values[j] = r0 + j < rank ? to_float(row[r0 + j]) : 0.0F;
    }
  }
}

// ds of four rows: threads along the channels.
template <bool VECTOR, class T>
__device__ void shrink_rows(const BackwardArgs<T>& args, int64_t t0, float* shared) {
  const int valid = static_cast<int>(min(static_cast<int64_t>(kRows), args.rows - t0));
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x & 31;
  const T* wide = args.wide + t0 * args.channels;
  for (int r0 = 0; r0 < args.rank; r0 += kRanks) {
    float sums[kRows * kRanks] = {};
#pragma unroll 2
    for (int n = threadIdx.x; n < args.channels; n += kThreads) {
      float factors[kRanks];
      load_ranks<VECTOR>(args.factor + static_cast<int64_t>(n) * args.rank, r0, args.rank, factors);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const int64_t from = static_cast<int64_t>(min(row, valid - 1)) * args.channels + n;
        const float value = to_float(wide[from]);
#pragma unroll
        for (int j = 0; j < kRanks; ++j) {
          sums[row * kRanks + j] = fmaf(value, factors[j], sums[row * kRanks + j]);
        }
      }
    }
    shared[warp * 32 + lane] = transpose_sum(sums);
    __syncthreads();
    if (warp == 0) {
      float sum = 0.0F;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        sum += shared[i * 32 + lane];
      }
      const int row = lane / kRanks;
      const int r = r0 + lane % kRanks;
      if (row < valid && r < args.rank) {
        args.low[(t0 + row) * args.rank + r] = from_float<T>(args.scaling * sum);
      }
    }
    __syncthreads();
  }
}

// dx of four rows: threads along the channels, ds in shared memory.
template <class T>
__device__ void expand_rows(const BackwardArgs<T>& args, int64_t t0, float* shared) {
  const int valid = static_cast<int>(min(static_cast<int64_t>(kRows), args.rows - t0));
  for (int i = threadIdx.x; i < kRows * args.rank; i += kThreads) {
    const int row = i / args.rank;
    const int r = i - row * args.rank;
    shared[r * kRows + row] = to_float(args.low[(t0 + min(row, valid - 1)) * args.rank + r]);
  }
  __syncthreads();
  const int64_t C = args.channels;
  T* dx = args.dx + t0 * C;
  for (int64_t k = threadIdx.x; k < C; k += kThreads) {
    float sums[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      sums[row] = to_float(dx[min(row, valid - 1) * C + k]);
    }
#pragma unroll 8
    for (int r = 0; r < args.rank; ++r) {
      const float factor = args.factor[r * C + k];
      const float4 low = reinterpret_cast<const float4*>(shared)[r];
      sums[0] = fmaf(low.x, factor, sums[0]);
      sums[1] = fmaf(low.y, factor, sums[1]);
      sums[2] = fmaf(low.z, factor, sums[2]);
      sums[3] = fmaf(low.w, factor, sums[3]);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row < valid) {
        dx[row * C + k] = from_float<T>(sums[row]);
      }
    }
  }
}

// COLUMNS channels of a gradient over one run of rows: a thread has a channel of every so many
// rows, and what they have of a channel is added up in order.
template <bool VECTOR, int COLUMNS, class T>
__device__ void collect_columns(const BackwardArgs<T>& args, int block, float* shared) {
  constexpr int kParts = kThreads / COLUMNS;  // of the rows
  const Collect<T>& collect = args.collect;
  const int run = block % collect.runs;
  const int part = static_cast<int>(threadIdx.x) / COLUMNS;
  const int column = static_cast<int>(threadIdx.x) % COLUMNS;
  const int64_t C = collect.channels;
  const int64_t c0 = static_cast<int64_t>(block / collect.runs) * COLUMNS;
  const T* wide = collect.wide + min(c0 + column, C - 1);
  const int64_t begin = run * collect.run_rows;
  const int64_t end = min(args.rows, begin + collect.run_rows);
  constexpr int kPadded = kRanks + 1;  // lanes then write to different banks
  for (int r0 = 0; r0 < args.rank; r0 += kRanks) {
    float sums[kRanks] = {};
#pragma unroll 8
    for (int64_t t = begin + part; t < end; t += kParts) {
      const float value = to_float(wide[t * C]);
      float low[kRanks];
      load_ranks<VECTOR>(collect.narrow + t * args.rank, r0, args.rank, low);
#pragma unroll
      for (int j = 0; j < kRanks; ++j) {
        sums[j] = fmaf(value, low[j], sums[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kRanks; ++j) {
      shared[(part * COLUMNS + column) * kPadded + j] = sums[j];
    }
    __syncthreads();
    // One thread a channel and rank; lanes along what is contiguous in the result.
    const int thread = static_cast<int>(threadIdx.x);
    const int own = collect.rank_first ? thread % COLUMNS : thread / kRanks;
    const int j = collect.rank_first ? thread / COLUMNS : thread % kRanks;
    const int64_t channel = c0 + own;
    const int r = r0 + j;
    if (thread < COLUMNS * kRanks && channel < C) {
      float sum = 0.0F;
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        sum += shared[(i * COLUMNS + own) * kPadded + j];
      }
      if (collect.partials != nullptr && r < collect.stride) {
        collect.partials[(run * C + channel) * collect.stride + r] = sum;
      } else if (collect.partials == nullptr && r < args.rank) {
        float* out = collect.rank_first ? collect.out + r * C + channel
                                        : collect.out + channel * args.rank + r;
        *out = fmaf(collect.scaling, sum, *out);
      }
    }
    __syncthreads();
  }
}

template <class T, bool SHRINK, bool VECTOR>
__global__ void __launch_bounds__(kThreads, 2)
    backward_rows(const __grid_constant__ BackwardArgs<T> args) {
  extern __shared__ float4 shared[];
  float* floats = reinterpret_cast<float*>(shared);
  const int block = static_cast<int>(blockIdx.x);
  wait_for_previous();
  let_next_start();
  if (block < args.collect_blocks) {
    if (args.collect.columns == kColumns) {
      collect_columns<VECTOR, kColumns>(args, block, floats);
    } else {
      collect_columns<VECTOR, kFewColumns>(args, block, floats);
    }
    return;
  }
  const int64_t t0 = static_cast<int64_t>(block - args.collect_blocks) * kRows;
  if constexpr (SHRINK) {
    shrink_rows<VECTOR>(args, t0, floats);
  } else {
    expand_rows(args, t0, floats);
  }
}

template <bool SHRINK, class T>
void launch(const Context& context, BackwardArgs<T>& args, bool with_rows) {
  Collect<T>& collect = args.collect;
  const int64_t wide_blocks = ceil_div(collect.channels, kColumns) * collect.runs;
  collect.columns = 4 * wide_blocks <= context.multiprocessors ? kFewColumns : kColumns;
  args.collect_blocks =
      static_cast<int>(ceil_div(collect.channels, collect.columns)) * collect.runs;
  const int64_t row_blocks = with_rows ? ceil_div(args.rows, kRows) : 0;
  const auto grid = static_cast<unsigned>(args.collect_blocks + row_blocks);
  constexpr size_t kShared = size_t{kWarps} * kColumns * (kRanks + 1) * sizeof(float);
  const auto kernel =
      args.vector ? backward_rows<T, SHRINK, true> : backward_rows<T, SHRINK, false>;
  if (grid > 0) {
    launch_early(context, true, kernel, grid, kThreads, kShared, args);
    check_launch("lora_backward_rows");
  }
}

template <class T>
void backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
              const AdapterView& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
              const Tensor& dx) {
  const int64_t T_rows = x.rows();
  const int in = static_cast<int>(x.columns());
  const int out = static_cast<int>(dy.columns());
  const int runs = static_cast<int>(std::clamp<int64_t>(ceil_div(T_rows, kRunRows), 1, kMostRuns));
  const int64_t run_rows = ceil_div(T_rows, runs);
  const int stride = static_cast<int>(ceil_div(adapter.rank, 4) * 4);
  const int64_t a_size = static_cast<int64_t>(runs) * in * stride;
  const int64_t b_size = static_cast<int64_t>(runs) * out * stride;
  std::optional<Scratch> scratch;
  float* a_partials = nullptr;
  float* b_partials = nullptr;
  if (runs > 1) {
    scratch.emplace(context, (a_size + b_size) * sizeof(float));
    a_partials = scratch->as<float>();
    b_partials = a_partials + a_size;
  }

  T* low = static_cast<T*>(ds.address());
  const bool vector = adapter.rank % kRanks == 0 && aligned_to(adapter.b, 16) &&
                      aligned_to(low, 16) && aligned_to(s.address(), 16);
  BackwardArgs<T> first{static_cast<const T*>(dy.address()),
                        low,
                        nullptr,
                        adapter.b,
                        T_rows,
                        out,
                        adapter.rank,
                        adapter.scaling};
  first.collect = {first.wide,
                   static_cast<const T*>(s.address()),
                   out,
                   0,
                   runs,
                   run_rows,
                   false,
                   adapter.scaling,
                   b_partials,
                   stride,
                   db.data<float>()};
  launch<true>(context, first, true);

  BackwardArgs<T> second{nullptr,      low,    dx ? static_cast<T*>(dx.address()) : nullptr,
                         adapter.a,    T_rows, in,
                         adapter.rank, 1.0F};
  second.collect = {static_cast<const T*>(x.address()),
                    low,
                    in,
                    0,
                    runs,
                    run_rows,
                    true,
                    1.0F,
                    a_partials,
                    stride,
                    da.data<float>()};
  launch<false>(context, second, static_cast<bool>(dx));
  if (runs > 1) {
    add_partials(context,
                 {a_partials, runs, in, stride, adapter.rank, true, 1.0F, da.data<float>(), in},
                 {b_partials, runs, out, stride, adapter.rank, false, adapter.scaling,
                  db.data<float>(), adapter.rank});
  }
}

}  // namespace

void lora_backward_rows(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                        const LoraFactors& adapter, const Tensor& ds, const Tensor& da,
                        const Tensor& db, const Tensor& dx) {
  if (x.rows() == 0) {
    return;
  }
  if (x.dtype() == DType::bf16) {
    backward<__nv_bfloat16>(context, x, s, dy, view_of(adapter), ds, da, db, dx);
  } else {
    backward<float>(context, x, s, dy, view_of(adapter), ds, da, db, dx);
  }
}

}  // namespace wick::cuda
