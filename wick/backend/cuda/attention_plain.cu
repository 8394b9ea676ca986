// Attention for any type, head size up to 256 and alignment: tiles in shared memory as f32,
// products by single f32 operations. It serves f32 activations, and bf16 where rows are not whole
// chunks.
//
// The walk over keys is that of attention.cu. Bound by f32 operations and shared memory (two loads
// an operation or so). Memory: none.
#include <algorithm>

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;                // queries, and keys, of a tile
constexpr int kSide = 16;                // a thread has rows y, y + 16 and columns x, x + 16, ..
constexpr int kColumns = 16;             // of the head a thread has at most: D <= 16 x 16
constexpr int kScoreStride = kTile + 1;  // apart in banks
constexpr int kLanesOfRow = kThreads / kTile;

// Floats from row to row of a tile: odd, so that a column's elements lie in different banks.
__host__ __device__ inline int tile_stride(int D) {
  return D | 1;
}

struct Lane {
  int x = static_cast<int>(threadIdx.x) % kSide;
  int y = static_cast<int>(threadIdx.x) / kSide;
};

// Rows [first, first + rows) of head `head` of [.., heads, D]; the tile's other rows are zero.
template <class T>
__device__ void load_plain(const T* from, int first, int rows, int heads, int head, int D,
                           float* tile) {
  for (int at = static_cast<int>(threadIdx.x); at < kTile * D; at += kThreads) {
    const int row = at / D;
    const int i = at % D;
    tile[row * tile_stride(D) + i] =
        row < rows ? to_float(from[(static_cast<int64_t>(first + row) * heads + head) * D + i])
                   : 0.0F;
  }
}

// products[r][c] = a[y + 16 r] . b[x + 16 c]
__device__ __forceinline__ void dot_products(const float* a, const float* b, int D,
                                             float (&products)[2][2]) {
  const Lane lane;
  const int stride = tile_stride(D);
  a += lane.y * stride;
  b += lane.x * stride;
  products[0][0] = products[0][1] = products[1][0] = products[1][1] = 0.0F;
  for (int i = 0; i < D; ++i) {
    const float a0 = a[i];
    const float a1 = a[kSide * stride + i];
    const float b0 = b[i];
    const float b1 = b[kSide * stride + i];
    products[0][0] += a0 * b0;
    products[0][1] += a0 * b1;
    products[1][0] += a1 * b0;
    products[1][1] += a1 * b1;
  }
}

// acc[r][c] += sum over j of weights[j at row y + 16 r] tile[j][x + 16 c]; the weight of row i and
// term j lies at i row_step + j term_step.
__device__ __forceinline__ void add_weighted(const float* weights, int row_step, int term_step,
                                             const float* tile, int D, float (&acc)[2][kColumns]) {
  const Lane lane;
  for (int j = 0; j < kTile; ++j) {
    const float w0 = weights[lane.y * row_step + j * term_step];
    const float w1 = weights[(lane.y + kSide) * row_step + j * term_step];
    const float* row = tile + j * tile_stride(D);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int i = lane.x + c * kSide;
      if (i < D) {
        acc[0][c] += w0 * row[i];
        acc[1][c] += w1 * row[i];
      }
    }
  }
}

// Rows [first, first + rows) of head `head` of a result [.., heads, D].
template <class T>
__device__ __forceinline__ void store_plain(const float (&acc)[2][kColumns],
                                            const float (&factors)[2], int first, int rows,
                                            int heads, int head, int D, T* to) {
  const Lane lane;
  for (int r = 0; r < 2; ++r) {
    const int row = lane.y + r * kSide;
    if (row >= rows) {
      continue;
    }
    T* out = to + (static_cast<int64_t>(first + row) * heads + head) * D;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int i = lane.x + c * kSide;
      if (i < D) {
        out[i] = from_float<T>(acc[r][c] * factors[r]);
      }
    }
  }
}

// The scores of a row, of which this thread has every kLanesOfRow-th from `mine` on, become
// probabilities; returns what sums so far are to be multiplied with.
__device__ __forceinline__ float soften(float* mine, float& largest, float& sum) {
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
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_plain_kernel(const AttentionCall call, const PlainForward<T> tensors) {
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
  load_plain(tensors.q, first_row, rows, call.H, h, D, queries);
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
  float acc[2][kColumns] = {};
  for (int first_key = bounds.begin; first_key < bounds.end; first_key += kTile) {
    const int count = min(bounds.end - first_key, kTile);
    load_plain(tensors.k, first_key, count, call.G, g, D, keys);
    load_plain(tensors.v, first_key, count, call.G, g, D, values);
    __syncthreads();
    float products[2][2];
    dot_products(queries, keys, D, products);
    for (int r = 0; r < 2; ++r) {
      for (int c = 0; c < 2; ++c) {
        const int row = lane.y + r * kSide;
        const int column = lane.x + c * kSide;
        scores[row * kScoreStride + column] =
            ranges[row].has(first_key + column) ? products[r][c] * call.scale : -INFINITY;
      }
    }
    __syncthreads();
    const float factor = soften(scores + my_row * kScoreStride + my_part, largest, sum);
    if (my_part == 0) {
      factors[my_row] = factor;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      acc[0][c] *= factors[lane.y];
      acc[1][c] *= factors[lane.y + kSide];
    }
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
  store_plain(acc, {factors[lane.y], factors[lane.y + kSide]}, first_row, rows, call.H, h, D,
              tensors.o);
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

__device__ __forceinline__ PlainTile plain_tile(unsigned char* shared, int D) {
  float* at = reinterpret_cast<float*>(shared);
  const int size = kTile * tile_stride(D);
  return {at,
          at + size,
          at + 2 * size,
          at + 3 * size,
          at + 4 * size,
          at + 4 * size + kTile * kScoreStride};
}

inline int plain_tile_bytes(int D) {
  return (4 * kTile * tile_stride(D) + 2 * kTile * kScoreStride) * static_cast<int>(sizeof(float));
}

// p and ds of the rows from first_row and the keys from first_key on.
__device__ __forceinline__ void score_gradients(const AttentionCall& call,
                                                const RowStatistics& statistics, int h,
                                                int first_row, int first_key,
                                                const PlainTile& tile) {
  const Lane lane;
  float products[2][2];
  float dp[2][2];
  dot_products(tile.queries, tile.keys, call.D, products);
  dot_products(tile.d_o, tile.values, call.D, dp);
  for (int r = 0; r < 2; ++r) {
    const int row = lane.y + r * kSide;
    const bool exists = first_row + row < call.Tq;
    const VisibleKeys seen = exists ? statistics.keys[first_row + row] : VisibleKeys{0, 0};
    const float2 of_head =
        exists ? statistics.of_heads[static_cast<int64_t>(h) * call.Tq + first_row + row]
               : float2{0.0F, 0.0F};
    for (int c = 0; c < 2; ++c) {
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
template <class T>
__global__ void __launch_bounds__(kThreads)
    plain_backward_keys(const AttentionCall call, const PlainBackward<T> tensors) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ RowBounds visible;
  const int D = call.D;
  const PlainTile tile = plain_tile(shared, D);
  const int g = static_cast<int>(blockIdx.x);
  const int first_key = static_cast<int>(blockIdx.y) * kTile;
  const int count = min(call.Tk - first_key, kTile);
  load_plain(tensors.k, first_key, count, call.G, g, D, tile.keys);
  load_plain(tensors.v, first_key, count, call.G, g, D, tile.values);
  find_rows(call, first_key, count, &visible);
  float dk[2][kColumns] = {};
  float dv[2][kColumns] = {};
  const int heads = call.H / call.G;
  for (int h = g * heads; h < (g + 1) * heads; ++h) {
    for (int first_row = visible.begin; first_row < visible.end; first_row += kTile) {
      const int rows = min(call.Tq - first_row, kTile);
      load_plain(tensors.q, first_row, rows, call.H, h, D, tile.queries);
      load_plain(tensors.d_o, first_row, rows, call.H, h, D, tile.d_o);
      __syncthreads();
      score_gradients(call, tensors.statistics, h, first_row, first_key, tile);
      __syncthreads();
      add_weighted(tile.p, 1, kScoreStride, tile.d_o, D, dv);
      add_weighted(tile.ds, 1, kScoreStride, tile.queries, D, dk);
      __syncthreads();
    }
  }
  store_plain(dk, {call.scale, call.scale}, first_key, count, call.G, g, D, tensors.dk);
  store_plain(dv, {1.0F, 1.0F}, first_key, count, call.G, g, D, tensors.dv);
}

// Grid: H, tiles of rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    plain_backward_queries(const AttentionCall call, const PlainBackward<T> tensors) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int D = call.D;
  const PlainTile tile = plain_tile(shared, D);
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(blockIdx.y) * kTile;
  const int rows = min(call.Tq - first_row, kTile);
  load_plain(tensors.q, first_row, rows, call.H, h, D, tile.queries);
  load_plain(tensors.d_o, first_row, rows, call.H, h, D, tile.d_o);
  const KeyBounds bounds = key_bounds(tensors.statistics.keys + first_row, rows);
  float dq[2][kColumns] = {};
  for (int first_key = bounds.begin; first_key < bounds.end; first_key += kTile) {
    const int count = min(bounds.end - first_key, kTile);
    load_plain(tensors.k, first_key, count, call.G, g, D, tile.keys);
    load_plain(tensors.v, first_key, count, call.G, g, D, tile.values);
    __syncthreads();
    score_gradients(call, tensors.statistics, h, first_row, first_key, tile);
    __syncthreads();
    add_weighted(tile.ds, kScoreStride, 1, tile.keys, D, dq);
    __syncthreads();
  }
  store_plain(dq, {call.scale, call.scale}, first_row, rows, call.H, h, D, tensors.dq);
}

}  // namespace

void attention_plain(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionCall& call, const Tensor& o, const Tensor& lse) {
  const int bytes = 3 * kTile * tile_stride(call.D) * static_cast<int>(sizeof(float));
  const dim3 grid(call.H, divide_up(call.Tq, kTile));
  with_activation(q, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    allow_shared(attention_plain_kernel<T>, bytes);
    attention_plain_kernel<T><<<grid, kThreads, bytes, context.stream>>>(
        call, {typed, k.data<T>(), v.data<T>(), o.data<T>(), lse ? lse.data<float>() : nullptr});
  });
  check_launch("attention");
}

void attention_backward_plain(const Context& context, const AttentionResults& forward,
                              const AttentionCall& call, const RowStatistics& statistics,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const int bytes = plain_tile_bytes(call.D);
  const dim3 key_grid(call.G, divide_up(call.Tk, kTile));
  const dim3 query_grid(call.H, divide_up(call.Tq, kTile));
  with_activation(forward.q, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    const PlainBackward<T> tensors{
        typed,      forward.k.data<T>(), forward.v.data<T>(), forward.d_o.data<T>(),
        statistics, dq.data<T>(),        dk.data<T>(),        dv.data<T>()};
    if (call.Tk > 0) {
      allow_shared(plain_backward_keys<T>, bytes);
      plain_backward_keys<T><<<key_grid, kThreads, bytes, context.stream>>>(call, tensors);
    }
    if (call.Tq > 0) {
      allow_shared(plain_backward_queries<T>, bytes);
      plain_backward_queries<T><<<query_grid, kThreads, bytes, context.stream>>>(call, tensors);
    }
  });
  check_launch("attention_backward");
}

}  // namespace wick::cuda
