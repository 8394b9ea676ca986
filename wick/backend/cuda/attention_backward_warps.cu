// Attention backward on the tensor cores of any device: a warp owns 16 rows of a tile (mma.sync).
//
// The formulas are in attention_backward.cu. Both kernels keep p and ds in registers, where an
// accumulator's layout is that of an operand of the next product.
#include <algorithm>

#include "wick/backend/cuda/attention_backward.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

// A warp owns 16 rows of the block's own tile and walks over tiles of kOther rows of the other
// kind.
template <class T, int kHead, int kOtherRows, int kStagesOfBlock = 2>
struct BackwardTile {
  using Element = T;
  static constexpr int kD = kHead;
  static constexpr int kOwn = kTileWarps * 16;
  static constexpr int kOther = kOtherRows;
  // Blocks a multiprocessor, as far as registers and shared memory go.
  static constexpr int kResidentOfKeys = kD <= 64 && sizeof(T) == 2 ? 3 : 2;
  static constexpr int kResidentOfQueries = kD <= 80 && sizeof(T) == 2 ? 3 : 2;
  static constexpr int kOwnBytes = kOwn * kRowBytes<kD, T>;
  static constexpr int kOtherBytes = kOther * kRowBytes<kD, T>;
  // Two own tiles, then in each stage two tiles of the others with what belongs to their rows, 16
  // bytes each. Two stages: one is loaded while the other is read.
  static constexpr int kStages = kStagesOfBlock;
  static constexpr int kStageBytes = 2 * kOtherBytes + kOther * 16;
  static constexpr int kSharedBytes = 2 * kOwnBytes + kStages * kStageBytes;
};

// Whether all rows of the stage see all of kOwn keys; the same in all lanes.
template <class Tile>
__device__ __forceinline__ bool all_visible(const StageRows<Tile::kOther>* rows, int first_key) {
  bool all = true;
#pragma unroll
  for (int i = 0; i < Tile::kOther; i += 32) {
    const VisibleKeys seen = rows->keys[(i + threadIdx.x % 32) % Tile::kOther];
    all = all && seen.begin <= first_key && seen.end >= first_key + Tile::kOwn;
  }
  return __all_sync(~0U, all);
}

// dk and dv of a warp's 16 keys, from warp_row of the tile on, from the queries of a stage; `own`
// is the address of the first of them.
template <class Tile>
__device__ __forceinline__ void add_to_keys(uint32_t own, const unsigned char* stage, int first_key,
                                            int warp_row, float scale2,
                                            float (&dk)[1][Tile::kD / 8][4],
                                            float (&dv)[1][Tile::kD / 8][4]) {
  using T = typename Tile::Element;
  constexpr int kD = Tile::kD;
  constexpr int kOther = Tile::kOther;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto* rows = reinterpret_cast<const StageRows<kOther>*>(stage + 2 * Tile::kOtherBytes);
  const uint32_t queries = shared_address(stage);
  const uint32_t d_o = queries + Tile::kOtherBytes;
  const uint32_t left = own + left_lane<kD, T>();
  float p[1][kOther / 8][4] = {};  // transposed: [key][query]
  multiply_nt<kD, 1, kOther, T>(left, queries + right_lane<kD, T>(), p);
#pragma unroll
  for (int j = 0; j < kOther / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      p[0][j][c] = fast_exp2(p[0][j][c] * scale2 - rows->of_head[j * 8 + lane % 4 * 2 + c % 2].x);
    }
  }
  if (!all_visible<Tile>(rows, first_key)) {
    const int key = first_key + warp_row + lane / 4;
#pragma unroll
    for (int j = 0; j < kOther / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const VisibleKeys seen = rows->keys[j * 8 + lane % 4 * 2 + c % 2];
        p[0][j][c] = seen.has(key + c / 2 * 8) ? p[0][j][c] : 0.0F;
      }
    }
  }
  add_weighted<kD, 1, kOther, T>(p, d_o, dv);
  float ds[1][kOther / 8][4] = {};
  multiply_nt<kD, 1, kOther, T>(left + Tile::kOwnBytes, d_o + right_lane<kD, T>(), ds);
#pragma unroll
  for (int j = 0; j < kOther / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      ds[0][j][c] = p[0][j][c] * (ds[0][j][c] - rows->of_head[j * 8 + lane % 4 * 2 + c % 2].y);
    }
  }
  add_weighted<kD, 1, kOther, T>(ds, queries, dk);
}

// Grid: G parts, tiles of keys; the first keys, which most rows see, come first.
template <class Tile>
__global__ void __launch_bounds__(kTileThreads, Tile::kResidentOfKeys)
    backward_keys(const AttentionCall call, const BackwardTensors<typename Tile::Element> tensors) {
  using T = typename Tile::Element;
  constexpr int kBytes = sizeof(T);
  constexpr int kD = Tile::kD;
  constexpr int kOther = Tile::kOther;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ RowBounds visible;
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int g = static_cast<int>(blockIdx.x) / tensors.parts;
  const int part = static_cast<int>(blockIdx.x) % tensors.parts;
  const int first_key = static_cast<int>(blockIdx.y) * Tile::kOwn;
  const int keys = min(call.Tk - first_key, Tile::kOwn);
  const int chunks = call.D * kBytes / 16;
  const int q_row = call.H * call.D;
  const int k_row = call.G * call.D;
  const int64_t k_at = static_cast<int64_t>(first_key) * k_row + g * call.D;
  const uint32_t own = shared_address(shared);
  load_tile<kD, Tile::kOwn, T>({tensors.k + k_at, kBytes * k_row, keys, chunks}, own);
  load_tile<kD, Tile::kOwn, T>({tensors.v + k_at, kBytes * k_row, keys, chunks},
                               own + Tile::kOwnBytes);
  commit_copies();
  find_rows(call, first_key, keys, &visible);

  const int heads = call.H / call.G;
  const int heads_of_part = (heads + tensors.parts - 1) / tensors.parts;
  const int last_head = min(heads, (part + 1) * heads_of_part) + g * heads;
  const auto load_rows = [&](int h, int first_row, int stage_at) {
    const uint32_t stage = own + stage_at;
    const int64_t at = static_cast<int64_t>(first_row) * q_row + h * call.D;
    const int rows = min(call.Tq - first_row, kOther);
    load_tile<kD, kOther, T>({tensors.q + at, kBytes * q_row, rows, chunks}, stage);
    load_tile<kD, kOther, T>({tensors.d_o + at, kBytes * q_row, rows, chunks},
                             stage + Tile::kOtherBytes);
    const int row = static_cast<int>(threadIdx.x) % kOther;
    const uint32_t to = stage + 2 * Tile::kOtherBytes + row * 8;
    const int from = row < rows ? first_row + row : 0;
    if (threadIdx.x < kOther) {
      copy8_async(to, tensors.statistics.of_heads + static_cast<int64_t>(h) * call.Tq + from,
                  row < rows);
    } else if (threadIdx.x < 2 * kOther) {
      copy8_async(to + kOther * 8, tensors.statistics.keys + from, row < rows);
    }
    commit_copies();
  };

  float dk[1][kD / 8][4] = {};
  float dv[1][kD / 8][4] = {};
  const float scale2 = call.scale * kLog2E;
  int h = g * heads + part * heads_of_part;
  int first_row = visible.begin;
  int stage_at = 2 * Tile::kOwnBytes;
  int other_stage_at = stage_at + (Tile::kStages - 1) * Tile::kStageBytes;
  const bool any = h < last_head && first_row < visible.end;
  if (any) {
    load_rows(h, first_row, other_stage_at);
  }
  while (any && h < last_head) {
    wait_for_copies<0>();
    __syncthreads();  // the tiles are there, and those before them are no longer read
    const int loaded_at = other_stage_at;
    other_stage_at = stage_at;
    stage_at = loaded_at;
    first_row += kOther;
    if (first_row >= visible.end) {
      first_row = visible.begin;
      ++h;
    }
    const auto load_next = [&] {
      if (h < last_head) {
        load_rows(h, first_row, other_stage_at);
      }
    };
    if (Tile::kStages > 1) {
      load_next();
    }
    add_to_keys<Tile>(own + warp_row * kRowBytes<kD, T>, shared + stage_at, first_key, warp_row,
                      scale2, dk, dv);
    if (Tile::kStages == 1) {
      __syncthreads();
      load_next();
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // where no row sees these keys, their tiles may only now have come

  const int64_t to = k_at + static_cast<int64_t>(warp_row) * k_row;
  scale_rows<kD>(call.scale, dk);
  if (tensors.parts > 1) {
    const int64_t at = static_cast<int64_t>(part) * call.Tk * k_row + to;
    if constexpr (sizeof(T) == sizeof(float)) {
      store_rows<kD, 1>(dk, nullptr, {tensors.dk_parts + at, k_row, keys - warp_row, chunks});
      store_rows<kD, 1>(dv, nullptr, {tensors.dv_parts + at, k_row, keys - warp_row, chunks});
    } else {
      store_part<kD>(dk, 1.0F, k_row, keys - warp_row, call.D, tensors.dk_parts + at);
      store_part<kD>(dv, 1.0F, k_row, keys - warp_row, call.D, tensors.dv_parts + at);
    }
    return;
  }
  unsigned char* stage = shared + warp_row * kRowBytes<kD, T>;
  store_rows<kD, 1>(dk, stage, {tensors.dk + to, k_row, keys - warp_row, chunks});
  store_rows<kD, 1>(dv, stage + Tile::kOwnBytes, {tensors.dv + to, k_row, keys - warp_row, chunks});
}

// What a lane needs of its two rows.
struct LaneRows {
  VisibleKeys seen[2];
  float2 of_head[2];
};

// dq of a warp's 16 rows, whose first is at `own`, from the keys and values of a stage.
template <class Tile>
__device__ __forceinline__ void add_to_queries(uint32_t own, uint32_t keys, const LaneRows& rows,
                                               const KeyBounds& bounds, int first_key, float scale2,
                                               float (&dq)[1][Tile::kD / 8][4]) {
  using T = typename Tile::Element;
  constexpr int kD = Tile::kD;
  constexpr int kOther = Tile::kOther;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t left = own + left_lane<kD, T>();
  float p[1][kOther / 8][4] = {};
  multiply_nt<kD, 1, kOther, T>(left, keys + right_lane<kD, T>(), p);
  const bool masked = first_key < bounds.inner_begin || first_key + kOther > bounds.inner_end;
#pragma unroll
  for (int j = 0; j < kOther / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int key = first_key + j * 8 + lane % 4 * 2 + c % 2;
      const float value = fast_exp2(p[0][j][c] * scale2 - rows.of_head[c / 2].x);
      p[0][j][c] = !masked || rows.seen[c / 2].has(key) ? value : 0.0F;
    }
  }
  float ds[1][kOther / 8][4] = {};
  multiply_nt<kD, 1, kOther, T>(left + Tile::kOwnBytes,
                                keys + Tile::kOtherBytes + right_lane<kD, T>(), ds);
#pragma unroll
  for (int j = 0; j < kOther / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      ds[0][j][c] = p[0][j][c] * (ds[0][j][c] - rows.of_head[c / 2].y);
    }
  }
  add_weighted<kD, 1, kOther, T>(ds, keys, dq);
}

// Grid: H, tiles of rows from the last to the first.
template <class Tile>
__global__ void __launch_bounds__(kTileThreads, Tile::kResidentOfQueries)
    backward_queries(const AttentionCall call,
                     const BackwardTensors<typename Tile::Element> tensors) {
  using T = typename Tile::Element;
  constexpr int kBytes = sizeof(T);
  constexpr int kD = Tile::kD;
  constexpr int kOther = Tile::kOther;
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Tile::kOwn;
  const int rows = min(call.Tq - first_row, Tile::kOwn);
  const int chunks = call.D * kBytes / 16;
  const int q_row = call.H * call.D;
  const int k_row = call.G * call.D;
  const int64_t q_at = static_cast<int64_t>(first_row) * q_row + h * call.D;
  const uint32_t own = shared_address(shared);
  load_tile<kD, Tile::kOwn, T>({tensors.q + q_at, kBytes * q_row, rows, chunks}, own);
  load_tile<kD, Tile::kOwn, T>({tensors.d_o + q_at, kBytes * q_row, rows, chunks},
                               own + Tile::kOwnBytes);
  commit_copies();

  const VisibleKeys* all_keys = tensors.statistics.keys + first_row;
  const KeyBounds of_tile = key_bounds(all_keys, rows);
  LaneRows mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(warp_row + half * 8 + lane / 4, rows - 1);
    mine.seen[half] = all_keys[row];
    mine.of_head[half] =
        tensors.statistics.of_heads[static_cast<int64_t>(h) * call.Tq + first_row + row];
  }
  const auto load_keys = [&](int first_key, int stage_at) {
    const int64_t at = static_cast<int64_t>(first_key) * k_row + g * call.D;
    const int count = min(of_tile.end - first_key, kOther);
    load_tile<kD, kOther, T>({tensors.k + at, kBytes * k_row, count, chunks}, own + stage_at);
    load_tile<kD, kOther, T>({tensors.v + at, kBytes * k_row, count, chunks},
                             own + stage_at + Tile::kOtherBytes);
    commit_copies();
  };

  float dq[1][kD / 8][4] = {};
  const float scale2 = call.scale * kLog2E;
  int stage_at = 2 * Tile::kOwnBytes;
  int other_stage_at = stage_at + (Tile::kStages - 1) * Tile::kStageBytes;
  if (of_tile.begin < of_tile.end) {
    load_keys(of_tile.begin, other_stage_at);
  }
  for (int first_key = of_tile.begin; first_key < of_tile.end; first_key += kOther) {
    wait_for_copies<0>();
    __syncthreads();  // the tiles are there, and those before them are no longer read
    const int loaded_at = other_stage_at;
    other_stage_at = stage_at;
    stage_at = loaded_at;
    const auto load_next = [&] {
      if (first_key + kOther < of_tile.end) {
        load_keys(first_key + kOther, other_stage_at);
      }
    };
    if (Tile::kStages > 1) {
      load_next();
    }
    add_to_queries<Tile>(own + warp_row * kRowBytes<kD, T>, own + stage_at, mine, of_tile,
                         first_key, scale2, dq);
    if (Tile::kStages == 1) {
      __syncthreads();
      load_next();
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // where no row sees a key, the tiles may only now have come
  scale_rows<kD>(call.scale, dq);
  store_rows<kD, 1>(
      dq, shared + warp_row * kRowBytes<kD, T>,
      {tensors.dq + q_at + static_cast<int64_t>(warp_row) * q_row, q_row, rows - warp_row, chunks});
}

template <class Tile>
void launch_tiles(const Context& context, const AttentionCall& call,
                  const BackwardTensors<typename Tile::Element>& tensors) {
  if (call.Tk > 0) {
    const dim3 grid(call.G * tensors.parts, divide_up(call.Tk, Tile::kOwn));
    allow_shared(backward_keys<Tile>, Tile::kSharedBytes);
    backward_keys<Tile><<<grid, kTileThreads, Tile::kSharedBytes, context.stream>>>(call, tensors);
    check_launch("attention_backward of keys");
  }
  if (call.Tq > 0) {
    const dim3 grid(call.H, divide_up(call.Tq, Tile::kOwn));
    allow_shared(backward_queries<Tile>, Tile::kSharedBytes);
    backward_queries<Tile>
        <<<grid, kTileThreads, Tile::kSharedBytes, context.stream>>>(call, tensors);
    check_launch("attention_backward of queries");
  }
}

// The second where a block may not have so much shared memory as the first takes.
template <class Tile, class Smaller>
void launch_tiles_that_fit(const Context& context, const AttentionCall& call,
                           const BackwardTensors<typename Tile::Element>& tensors) {
  if (has_shared(context, Tile::kSharedBytes)) {
    launch_tiles<Tile>(context, call, tensors);
  } else {
    launch_tiles<Smaller>(context, call, tensors);
  }
}

}  // namespace

// Heads between these sizes are padded with zeros.
void backward_warps(const Context& context, const AttentionCall& call,
                    const BackwardTensors<__nv_bfloat16>& tensors) {
  using T = __nv_bfloat16;
  if (call.D <= 64) {
    launch_tiles<BackwardTile<T, 64, 64>>(context, call, tensors);
  } else if (call.D <= 80) {
    launch_tiles<BackwardTile<T, 80, 64>>(context, call, tensors);
  } else if (call.D <= 96) {
    launch_tiles<BackwardTile<T, 96, 64>>(context, call, tensors);
  } else {
    launch_tiles_that_fit<BackwardTile<T, 128, 64>, BackwardTile<T, 128, 32>>(context, call,
                                                                              tensors);
  }
}
// Tiles of f32 have as many rows on all devices, so that results are the same.
void backward_warps(const Context& context, const AttentionCall& call,
                    const BackwardTensors<float>& tensors) {
  if (call.D <= 64) {
    launch_tiles_that_fit<BackwardTile<float, 64, 64>, BackwardTile<float, 64, 64, 1>>(
        context, call, tensors);
  } else if (call.D <= 96) {
    launch_tiles_that_fit<BackwardTile<float, 96, 32>, BackwardTile<float, 96, 32, 1>>(
        context, call, tensors);
  } else {
    launch_tiles_that_fit<BackwardTile<float, 128, 16>, BackwardTile<float, 128, 16, 1>>(
        context, call, tensors);
  }
}

}  // namespace wick::cuda
