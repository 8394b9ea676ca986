// Attention for any type, head size up to 256 and alignment: tiles in shared memory as f32,
// products by single f32 operations. It serves rows that are not whole chunks, and of f32 also
// heads of more than 128 and few queries of many keys.
//
// The walk over keys is that of attention.cu. Bound by f32 operations and shared memory (two loads
// an operation or so). Memory: none.
#include <algorithm>

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSide = 16;     // a thread has rows y, y + 16, .. and columns x, x + 16, ..
constexpr int kColumns = 16;  // of the head a thread has at most: D <= 16 x 16

// A thread has kRowBlocks rows of a tile.
template <int kRowBlocks>
struct Plain {
  static constexpr int kBlocks = kRowBlocks;
  static constexpr int kTile = kSide * kBlocks;         // queries, and keys, of a tile
  static constexpr int kScoreStride = kTile + 1;        // apart in banks
  static constexpr int kLanesOfRow = kThreads / kTile;  // in the softmax
};
// The smaller tiles are for large heads where a block has little shared memory.
using LargeTiles = Plain<2>;
using SmallTiles = Plain<1>;

// Floats from row to row of a tile: odd, so that a column's elements lie in different banks.
__host__ __device__ inline int tile_stride(int D) {
  return D | 1;
}

struct Lane {
  int x = static_cast<int>(threadIdx.x) % kSide;
  int y = static_cast<int>(threadIdx.x) / kSide;
};

// Rows [first, first + rows) of head `head` of [.., heads, D]; the tile's other rows are zero.
template <class Tiles, class T>
__device__ void load_plain(const T* from, int first, int rows, int heads, int head, int D,
                           float* tile) {
  for (int at = static_cast<int>(threadIdx.x); at < Tiles::kTile * D; at += kThreads) {
    const int row = at / D;
    const int i = at % D;
    tile[row * tile_stride(D) + i] =
        row < rows ? to_float(from[(static_cast<int64_t>(first + row) * heads + head) * D + i])
                   : 0.0F;
  }
}

// products[r][c] = a[y + 16 r] . b[x + 16 c]
template <int kBlocks>
__device__ __forceinline__ void dot_products(const float* a, const float* b, int D,
                                             float (&products)[kBlocks][kBlocks]) {
  const Lane lane;
  const int stride = tile_stride(D);
  a += lane.y * stride;
  b += lane.x * stride;
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      products[r][c] = 0.0F;
    }
  }
  for (int i = 0; i < D; ++i) {
    float right[kBlocks];
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      right[c] = b[c * kSide * stride + i];
    }
#pragma unroll
    for (int r = 0; r < kBlocks; ++r) {
      const float left = a[r * kSide * stride + i];
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        products[r][c] += left * right[c];
      }
    }
  }
}

// acc[r][c] += sum over j of weights[j at row y + 16 r] tile[j][x + 16 c]; the weight of row i and
// term j lies at i row_step + j term_step.
template <int kBlocks>
__device__ __forceinline__ void add_weighted(const float* weights, int row_step, int term_step,
                                             const float* tile, int D,
                                             float (&acc)[kBlocks][kColumns]) {
  const Lane lane;
  for (int j = 0; j < Plain<kBlocks>::kTile; ++j) {
    float weight[kBlocks];
#pragma unroll
    for (int r = 0; r < kBlocks; ++r) {
      weight[r] = weights[(lane.y + r * kSide) * row_step + j * term_step];
    }
    const float* row = tile + j * tile_stride(D);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int i = lane.x + c * kSide;
      if (i < D) {
#pragma unroll
        for (int r = 0; r < kBlocks; ++r) {
          acc[r][c] += weight[r] * row[i];
        }
      }
    }
  }
}

// By the factor of each row of the tile.
template <int kBlocks>
__device__ __forceinline__ void scale_rows(const float* factors, float (&acc)[kBlocks][kColumns]) {
  const Lane lane;
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
    const float factor = factors[lane.y + r * kSide];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      acc[r][c] *= factor;
    }
  }
}

template <int kBlocks>
__device__ __forceinline__ void scale_sums(float factor, float (&acc)[kBlocks][kColumns]) {
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      acc[r][c] *= factor;
    }
  }
}

// Rows [first, first + rows) of head `head` of a result [.., heads, D].
template <int kBlocks, class T>
__device__ __forceinline__ void store_plain(const float (&acc)[kBlocks][kColumns], int first,
                                            int rows, int heads, int head, int D, T* to) {
  const Lane lane;
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
    const int row = lane.y + r * kSide;
    if (row >= rows) {
      continue;
    }
    T* out = to + (static_cast<int64_t>(first + row) * heads + head) * D;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int i = lane.x + c * kSide;
      if (i < D) {
        out[i] = from_float<T>(acc[r][c]);
      }
    }
  }
}

// The scores of a row, of which this thread has every kLanesOfRow-th from `mine` on, become
// probabilities; returns what sums so far are to be multiplied with.
template <class Tiles>
__device__ __forceinline__ float soften(float* mine, float& largest, float& sum) {
  constexpr int kTile = Tiles::kTile;
  constexpr int kLanesOfRow = Tiles::kLanesOfRow;
  float top = largest;
  for (int j = 0; j < kTile; j += kLanesOfRow) {
    top = fmaxf(top, mine[j]);
  }
  for (int step = 1; step < kLanesOfRow; step *= 2) {
    top = fmaxf(top, __shfl_xor_sync(~0U, top, step));
  }
  const float shift = top == -INFINITY ? 0.0F : top;
  const float factor = expf(largest - shift);
  sum *= factor;
  largest = top;
  for (int j = 0; j < kTile; j += kLanesOfRow) {
    mine[j] = expf(mine[j] - shift);
    sum += mine[j];
  }
  return factor;
}

template <class T>
struct PlainForward {
  const T *q, *k, *v;
  T* o;
  float* lse;
};

// Grid: H, tiles of rows.
template <class Tiles, class T>
__global__ void __launch_bounds__(kThreads)
    attention_plain_kernel(const AttentionCall call, const PlainForward<T> tensors) {
  constexpr int kBlocks = Tiles::kBlocks;
  constexpr int kTile = Tiles::kTile;
  constexpr int kScoreStride = Tiles::kScoreStride;
  constexpr int kLanesOfRow = Tiles::kLanesOfRow;
  __shared__ VisibleKeys ranges[kTile];
  __shared__ float scores[kTile * kScoreStride];
  __shared__ float factors[kTile];
  extern __shared__ __align__(16) unsigned char shared[];
  const int D = call.D;
  float* queries = reinterpret_cast<float*>(shared);
  float* keys = queries + kTile * tile_stride(D);
  float* values = keys + kTile * tile_stride(D);
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(blockIdx.y) * kTile;
  const int rows = min(call.Tq - first_row, kTile);
  load_plain<Tiles>(tensors.q, first_row, rows, call.H, h, D, queries);
  if (threadIdx.x < kTile) {
    ranges[threadIdx.x] =
        visible_keys(call, first_row + min(static_cast<int>(threadIdx.x), rows - 1));
  }
  __syncthreads();
  const KeyBounds bounds = key_bounds(ranges, kTile);

  const Lane lane;
  const int my_row = static_cast<int>(threadIdx.x) / kLanesOfRow;  // in the softmax
  const int my_part = static_cast<int>(threadIdx.x) % kLanesOfRow;
  float largest = -INFINITY;
  float sum = 0.0F;
  float acc[kBlocks][kColumns] = {};
  for (int first_key = bounds.begin; first_key < bounds.end; first_key += kTile) {
    const int count = min(bounds.end - first_key, kTile);
    load_plain<Tiles>(tensors.k, first_key, count, call.G, g, D, keys);
    load_plain<Tiles>(tensors.v, first_key, count, call.G, g, D, values);
    __syncthreads();
    float products[kBlocks][kBlocks];
    dot_products(queries, keys, D, products);
    for (int r = 0; r < kBlocks; ++r) {
      for (int c = 0; c < kBlocks; ++c) {
        const int row = lane.y + r * kSide;
        const int column = lane.x + c * kSide;
        scores[row * kScoreStride + column] =
            ranges[row].has(first_key + column) ? products[r][c] * call.scale : -INFINITY;
      }
    }
    __syncthreads();
    const float factor = soften<Tiles>(scores + my_row * kScoreStride + my_part, largest, sum);
    if (my_part == 0) {
      factors[my_row] = factor;
    }
    __syncthreads();
    scale_rows(factors, acc);
    add_weighted(scores, kScoreStride, 1, values, D, acc);
    __syncthreads();
  }

  for (int step = 1; step < kLanesOfRow; step *= 2) {
    sum += __shfl_xor_sync(~0U, sum, step);
  }
  if (my_part == 0) {
    factors[my_row] = sum == 0.0F ? 0.0F : 1.0F / sum;
    if (tensors.lse != nullptr && my_row < rows) {
      tensors.lse[static_cast<int64_t>(first_row + my_row) * call.H + h] =
          sum == 0.0F ? -INFINITY : largest + logf(sum);
    }
  }
  __syncthreads();
  scale_rows(factors, acc);
  store_plain(acc, first_row, rows, call.H, h, D, tensors.o);
}

template <class T>
struct PlainBackward {
  const T *q, *k, *v, *d_o;
  RowStatistics statistics;
  T *dq, *dk, *dv;
};

// Of a tile of queries and a tile of keys: the probabilities p and the gradients of the scores
// (without the scale), [query][key].
struct PlainTile {
  float *queries, *d_o, *keys, *values;
  float *p, *ds;
};

template <class Tiles>
__device__ __forceinline__ PlainTile plain_tile(unsigned char* shared, int D) {
  float* at = reinterpret_cast<float*>(shared);
  const int size = Tiles::kTile * tile_stride(D);
  return {at,
          at + size,
          at + 2 * size,
          at + 3 * size,
          at + 4 * size,
          at + 4 * size + Tiles::kTile * Tiles::kScoreStride};
}

template <class Tiles>
int plain_tile_bytes(int D) {
  return (4 * Tiles::kTile * tile_stride(D) + 2 * Tiles::kTile * Tiles::kScoreStride) *
         static_cast<int>(sizeof(float));
}

// p and ds of the rows from first_row and the keys from first_key on.
template <class Tiles>
__device__ __forceinline__ void score_gradients(const AttentionCall& call,
                                                const RowStatistics& statistics, int h,
                                                int first_row, int first_key,
                                                const PlainTile& tile) {
  constexpr int kBlocks = Tiles::kBlocks;
  constexpr int kScoreStride = Tiles::kScoreStride;
  const Lane lane;
  float products[kBlocks][kBlocks];
  float dp[kBlocks][kBlocks];
  dot_products(tile.queries, tile.keys, call.D, products);
  dot_products(tile.d_o, tile.values, call.D, dp);
  for (int r = 0; r < kBlocks; ++r) {
    const int row = lane.y + r * kSide;
    const bool exists = first_row + row < call.Tq;
    const VisibleKeys seen = exists ? statistics.keys[first_row + row] : VisibleKeys{0, 0};
    const float2 of_head =
        exists ? statistics.of_heads[static_cast<int64_t>(h) * call.Tq + first_row + row]
               : float2{0.0F, 0.0F};
    for (int c = 0; c < kBlocks; ++c) {
      const int column = lane.x + c * kSide;
      const float p = seen.has(first_key + column)
                          ? expf(products[r][c] * call.scale - of_head.x * kLn2)
                          : 0.0F;
      tile.p[row * kScoreStride + column] = p;
      tile.ds[row * kScoreStride + column] = p == 0.0F ? 0.0F : p * (dp[r][c] - of_head.y);
    }
  }
}

// Grid: G, tiles of keys. The heads of a group add up in their order.
template <class Tiles, class T>
__global__ void __launch_bounds__(kThreads)
    plain_backward_keys(const AttentionCall call, const PlainBackward<T> tensors) {
  constexpr int kBlocks = Tiles::kBlocks;
  constexpr int kTile = Tiles::kTile;
  constexpr int kScoreStride = Tiles::kScoreStride;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ RowBounds visible;
  const int D = call.D;
  const PlainTile tile = plain_tile<Tiles>(shared, D);
  const int g = static_cast<int>(blockIdx.x);
  const int first_key = static_cast<int>(blockIdx.y) * kTile;
  const int count = min(call.Tk - first_key, kTile);
  load_plain<Tiles>(tensors.k, first_key, count, call.G, g, D, tile.keys);
  load_plain<Tiles>(tensors.v, first_key, count, call.G, g, D, tile.values);
  find_rows(call, first_key, count, &visible);
  float dk[kBlocks][kColumns] = {};
  float dv[kBlocks][kColumns] = {};
  const int heads = call.H / call.G;
  for (int h = g * heads; h < (g + 1) * heads; ++h) {
    for (int first_row = visible.begin; first_row < visible.end; first_row += kTile) {
      const int rows = min(call.Tq - first_row, kTile);
      load_plain<Tiles>(tensors.q, first_row, rows, call.H, h, D, tile.queries);
      load_plain<Tiles>(tensors.d_o, first_row, rows, call.H, h, D, tile.d_o);
      __syncthreads();
      score_gradients<Tiles>(call, tensors.statistics, h, first_row, first_key, tile);
      __syncthreads();
      add_weighted(tile.p, 1, kScoreStride, tile.d_o, D, dv);
      add_weighted(tile.ds, 1, kScoreStride, tile.queries, D, dk);
      __syncthreads();
    }
  }
  scale_sums(call.scale, dk);
  store_plain(dk, first_key, count, call.G, g, D, tensors.dk);
  store_plain(dv, first_key, count, call.G, g, D, tensors.dv);
}

// Grid: H, tiles of rows.
template <class Tiles, class T>
__global__ void __launch_bounds__(kThreads)
    plain_backward_queries(const AttentionCall call, const PlainBackward<T> tensors) {
  constexpr int kBlocks = Tiles::kBlocks;
  constexpr int kTile = Tiles::kTile;
  constexpr int kScoreStride = Tiles::kScoreStride;
  extern __shared__ __align__(16) unsigned char shared[];
  const int D = call.D;
  const PlainTile tile = plain_tile<Tiles>(shared, D);
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(blockIdx.y) * kTile;
  const int rows = min(call.Tq - first_row, kTile);
  load_plain<Tiles>(tensors.q, first_row, rows, call.H, h, D, tile.queries);
  load_plain<Tiles>(tensors.d_o, first_row, rows, call.H, h, D, tile.d_o);
  const KeyBounds bounds = key_bounds(tensors.statistics.keys + first_row, rows);
  float dq[kBlocks][kColumns] = {};
  for (int first_key = bounds.begin; first_key < bounds.end; first_key += kTile) {
    const int count = min(bounds.end - first_key, kTile);
    load_plain<Tiles>(tensors.k, first_key, count, call.G, g, D, tile.keys);
    load_plain<Tiles>(tensors.v, first_key, count, call.G, g, D, tile.values);
    __syncthreads();
    score_gradients<Tiles>(call, tensors.statistics, h, first_row, first_key, tile);
    __syncthreads();
    add_weighted(tile.ds, kScoreStride, 1, tile.keys, D, dq);
    __syncthreads();
  }
  scale_sums(call.scale, dq);
  store_plain(dq, first_row, rows, call.H, h, D, tensors.dq);
}

// Calls with large tiles where a block may have `bytes_of` them, else with small ones.
template <class Bytes, class Function>
void with_tiles(const Context& context, const Bytes& bytes_of, const Function& function) {
  if (has_shared(context, bytes_of(LargeTiles()))) {
    function(LargeTiles(), bytes_of(LargeTiles()));
  } else {
    function(SmallTiles(), bytes_of(SmallTiles()));
  }
}

}  // namespace

void attention_plain(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionCall& call, const Tensor& o, const Tensor& lse) {
  const auto bytes_of = [&]<class Tiles>(Tiles) {
    return 3 * Tiles::kTile * tile_stride(call.D) * static_cast<int>(sizeof(float));
  };
  with_activation(q, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    with_tiles(context, bytes_of, [&]<class Tiles>(Tiles, int bytes) {
      const dim3 grid(call.H, divide_up(call.Tq, Tiles::kTile));
      allow_shared(attention_plain_kernel<Tiles, T>, bytes);
      attention_plain_kernel<Tiles, T><<<grid, kThreads, bytes, context.stream>>>(
          call, {typed, k.data<T>(), v.data<T>(), o.data<T>(), lse ? lse.data<float>() : nullptr});
    });
  });
  check_launch("attention");
}

void attention_backward_plain(const Context& context, const AttentionResults& forward,
                              const AttentionCall& call, const RowStatistics& statistics,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const auto bytes_of = [&]<class Tiles>(Tiles) { return plain_tile_bytes<Tiles>(call.D); };
  with_activation(forward.q, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    const PlainBackward<T> tensors{
        typed,      forward.k.data<T>(), forward.v.data<T>(), forward.d_o.data<T>(),
        statistics, dq.data<T>(),        dk.data<T>(),        dv.data<T>()};
    with_tiles(context, bytes_of, [&]<class Tiles>(Tiles, int bytes) {
      if (call.Tk > 0) {
        const dim3 grid(call.G, divide_up(call.Tk, Tiles::kTile));
        allow_shared(plain_backward_keys<Tiles, T>, bytes);
        plain_backward_keys<Tiles, T><<<grid, kThreads, bytes, context.stream>>>(call, tensors);
      }
      if (call.Tq > 0) {
        const dim3 grid(call.H, divide_up(call.Tq, Tiles::kTile));
        allow_shared(plain_backward_queries<Tiles, T>, bytes);
        plain_backward_queries<Tiles, T><<<grid, kThreads, bytes, context.stream>>>(call, tensors);
      }
    });
  });
  check_launch("attention_backward");
}

}  // namespace wick::cuda
