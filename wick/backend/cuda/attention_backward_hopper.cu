// Attention backward by groups of four warps, for heads of 64 and 128 on compute capability 9.0.
//
// The formulas and the two kernels of attention_backward.cu, with the products of wgmma: see
// attention_groups.cuh. p and ds stay in registers as left operands. Bound by the tensor cores: 14
// D flops a visible pair and head; at D = 64 two exponentials a pair take about as long.
//
// Memory: none but what the caller gives.
#include "wick/backend/cuda/attention_backward.cuh"
#include "wick/backend/cuda/attention_groups.cuh"

namespace wick::cuda {

namespace {

constexpr int kOtherRows = 64;

// A group owns 64 rows of the block's own tile and walks over tiles of 64 rows of the other kind.
template <int kHead, int kGroupsOfBlock, int kBlocksResident>
struct BackwardGroups {
  static constexpr int kD = kHead;
  static constexpr int kGroups = kGroupsOfBlock;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kResident = kBlocksResident;  // blocks a multiprocessor
  static constexpr int kOwn = kGroups * kGroupRows;
  static constexpr int kOwnBytes = kOwn * kD * 2;
  static constexpr int kOtherBytes = kOtherRows * kD * 2;
  // Two own tiles, then twice two tiles of the others; what belongs to their rows, also twice.
  static constexpr int kRowsAt = 2 * kOwnBytes + 4 * kOtherBytes;
  static constexpr int kSharedBytes = kRowsAt + 2 * kOtherRows * 16 + kPanelAlignment;
};

using OtherRows = StageRows<kOtherRows>;

// Whether rows see keys [first_key, first_key + 64): some of them any, all of them all; the same in
// all lanes.
struct Sight {
  bool any, all;
};
[[maybe_unused]] __device__ __forceinline__ Sight sight_of(const OtherRows& rows, int first_key) {
  bool any = false;
  bool all = true;
#pragma unroll
  for (int i = 0; i < kOtherRows; i += 32) {
    const VisibleKeys seen = rows.keys[i + threadIdx.x % 32];
    const int end = first_key + kGroupRows;
    any = any || (!seen.empty() && seen.begin < end && seen.end > first_key);
    all = all && seen.begin <= first_key && seen.end >= end;
  }
  return {__any_sync(~0U, any) != 0, __all_sync(~0U, all) != 0};
}

// scores[key][query] become probabilities; first_key is that of the warp.
[[maybe_unused]] __device__ __forceinline__ void to_probabilities(const OtherRows& rows,
                                                                  bool all_visible, int first_key,
                                                                  float scale2,
                                                                  float (&scores)[1][8][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 pair = *reinterpret_cast<const float4*>(&rows.of_head[j * 8 + lane % 4 * 2]);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      scores[0][j][c] = fast_exp2(scores[0][j][c] * scale2 - (c % 2 == 0 ? pair.x : pair.z));
    }
  }
  if (!all_visible) {
    const int key = first_key + lane / 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const VisibleKeys seen = rows.keys[j * 8 + lane % 4 * 2 + c % 2];
        scores[0][j][c] = seen.has(key + c / 2 * 8) ? scores[0][j][c] : 0.0F;
      }
    }
  }
}

// dk and dv of a group's 64 keys, which lie at `own`, from the queries at `stage`.
template <class Tile>
__device__ __forceinline__ void add_to_keys(uint32_t own, uint32_t stage, const OtherRows& rows,
                                            int first_key, float scale2,
                                            float (&dk)[1][Tile::kD / 8][4],
                                            float (&dv)[1][Tile::kD / 8][4]) {
  constexpr int kD = Tile::kD;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const Sight sight = sight_of(rows, first_key);
  if (!sight.any) {
    return;
  }
  const uint32_t d_o = stage + Tile::kOtherBytes;
  float p[1][8][4];  // transposed: [key][query]
  float ds[1][8][4];
  begin_products();
  start_nt<kD, Tile::kOwn * kPanelRowBytes>(own, stage, p);
  commit_products();
  start_nt<kD, Tile::kOwn * kPanelRowBytes>(own + Tile::kOwnBytes, d_o, ds);
  commit_products();
  wait_for_products<1>();
  settle(p);
  const int warp_key = first_key + static_cast<int>(threadIdx.x / 32 % 4) * 16;
  to_probabilities(rows, sight.all, warp_key, scale2, p);
  uint32_t left[1][4][4];
  to_fragments<1, 64>(p, left);
  begin_products();
  start_nn<kD>(left, d_o, dv);
  commit_products();
  wait_for_products<1>();
  settle(ds);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 pair = *reinterpret_cast<const float4*>(&rows.of_head[j * 8 + lane % 4 * 2]);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      ds[0][j][c] = p[0][j][c] * (ds[0][j][c] - (c % 2 == 0 ? pair.y : pair.w));
    }
  }
  uint32_t left_of_ds[1][4][4];
  to_fragments<1, 64>(ds, left_of_ds);
  begin_products();
  start_nn<kD>(left_of_ds, stage, dk);
  commit_products();
  wait_for_products<0>();
  settle(dv);
  settle(dk);
}

// Starts the copies of the queries from first_row on, their d_o and what belongs to them.
template <class Tile>
__device__ __forceinline__ void load_rows(const AttentionCall& call,
                                          const BackwardTensors<__nv_bfloat16>& tensors, int h,
                                          int first_row, uint32_t stage, uint32_t stage_rows) {
  constexpr int kD = Tile::kD;
  const int q_row = call.H * kD;
  const int64_t at = static_cast<int64_t>(first_row) * q_row + h * kD;
  const int rows = min(call.Tq - first_row, kOtherRows);
  load_panels<kD, kOtherRows, Tile::kThreads>({tensors.q + at, 2 * q_row, rows, kD / 8}, stage);
  load_panels<kD, kOtherRows, Tile::kThreads>({tensors.d_o + at, 2 * q_row, rows, kD / 8},
                                              stage + Tile::kOtherBytes);
  const int row = static_cast<int>(threadIdx.x) % kOtherRows;
  const uint32_t to = stage_rows + row * 8;
  const int from = row < rows ? first_row + row : 0;
  if (threadIdx.x < kOtherRows) {
    copy8_async(to, tensors.statistics.of_heads + static_cast<int64_t>(h) * call.Tq + from,
                row < rows);
  } else if (threadIdx.x < 2 * kOtherRows) {
    copy8_async(to + kOtherRows * 8, tensors.statistics.keys + from, row < rows);
  }
  commit_copies();
}

// Grid: G parts, tiles of keys; the first keys, which most rows see, come first.
template <class Tile>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(Tile::kThreads), Tile::kResident)
    group_backward_keys(const AttentionCall call, const BackwardTensors<__nv_bfloat16> tensors) {
#if WICK_GROUP_THREADS(1) == 1
  constexpr int kD = Tile::kD;
  extern __shared__ __align__(1024) unsigned char unaligned[];
  unsigned char* shared = align_panels(unaligned);
  __shared__ RowBounds visible;
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int g = static_cast<int>(blockIdx.x) / tensors.parts;
  const int part = static_cast<int>(blockIdx.x) % tensors.parts;
  const int first_key = static_cast<int>(blockIdx.y) * Tile::kOwn;
  const int keys = min(call.Tk - first_key, Tile::kOwn);
  const int k_row = call.G * kD;
  const int64_t k_at = static_cast<int64_t>(first_key) * k_row + g * kD;
  const uint32_t own = shared_address(shared);
  load_panels<kD, Tile::kOwn, Tile::kThreads>({tensors.k + k_at, 2 * k_row, keys, kD / 8}, own);
  load_panels<kD, Tile::kOwn, Tile::kThreads>({tensors.v + k_at, 2 * k_row, keys, kD / 8},
                                              own + Tile::kOwnBytes);
  commit_copies();
  find_rows(call, first_key, keys, &visible);

  const int heads = call.H / call.G;
  const int heads_of_part = (heads + tensors.parts - 1) / tensors.parts;
  const int last_head = min(heads, (part + 1) * heads_of_part) + g * heads;
  float dk[1][kD / 8][4] = {};
  float dv[1][kD / 8][4] = {};
  const float scale2 = call.scale * kLog2E;
  int h = g * heads + part * heads_of_part;
  int first_row = visible.begin;
  int stage = 1;
  const auto load = [&](int to) {
    load_rows<Tile>(call, tensors, h, first_row,
                    own + 2 * Tile::kOwnBytes + to * 2 * Tile::kOtherBytes,
                    own + Tile::kRowsAt + to * static_cast<int>(sizeof(OtherRows)));
  };
  const bool any = h < last_head && first_row < visible.end;
  if (any) {
    load(0);
  }
  while (any && h < last_head) {
    publish_copies();
    __syncthreads();  // the tiles are there, and those before them are no longer read
    stage ^= 1;
    first_row += kOtherRows;
    if (first_row >= visible.end) {
      first_row = visible.begin;
      ++h;
    }
    if (h < last_head) {
      load(stage ^ 1);
    }
    add_to_keys<Tile>(own + group * kGroupPanelBytes,
                      own + 2 * Tile::kOwnBytes + stage * 2 * Tile::kOtherBytes,
                      reinterpret_cast<const OtherRows*>(shared + Tile::kRowsAt)[stage],
                      first_key + group * kGroupRows, scale2, dk, dv);
  }
  wait_for_copies<0>();
  __syncthreads();  // the tiles are no longer read, and make room for the results

  const int64_t to = k_at + static_cast<int64_t>(warp_row) * k_row;
  scale_rows<kD>(call.scale, dk);
  if (tensors.parts > 1) {
    const int64_t at = static_cast<int64_t>(part) * call.Tk * k_row + to;
    store_part<kD>(dk, 1.0F, k_row, keys - warp_row, kD, tensors.dk_parts + at);
    store_part<kD>(dv, 1.0F, k_row, keys - warp_row, kD, tensors.dv_parts + at);
    return;
  }
  unsigned char* rows = shared + warp_row * kRowBytes<kD>;
  store_rows<kD, 1>(dk, rows, {tensors.dk + to, k_row, keys - warp_row, kD / 8});
  store_rows<kD, 1>(dv, rows, {tensors.dv + to, k_row, keys - warp_row, kD / 8});
#endif
}

// What a lane needs of its two rows.
struct LaneRows {
  VisibleKeys seen[2];
  float2 of_head[2];
};

// dq of a group's 64 rows, which lie at `own`, from the keys and values at `stage`.
template <class Tile>
__device__ __forceinline__ void add_to_queries(uint32_t own, uint32_t stage, const LaneRows& rows,
                                               const KeyBounds& bounds, int first_key, float scale2,
                                               float (&dq)[1][Tile::kD / 8][4]) {
  constexpr int kD = Tile::kD;
  if (first_key >= bounds.end || first_key + kOtherRows <= bounds.begin) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  float p[1][8][4];
  float ds[1][8][4];
  begin_products();
  start_nt<kD, Tile::kOwn * kPanelRowBytes>(own, stage, p);
  commit_products();
  start_nt<kD, Tile::kOwn * kPanelRowBytes>(own + Tile::kOwnBytes, stage + Tile::kOtherBytes, ds);
  commit_products();
  wait_for_products<1>();
  settle(p);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      p[0][j][c] = fast_exp2(p[0][j][c] * scale2 - rows.of_head[c / 2].x);
    }
  }
  if (first_key < bounds.inner_begin || first_key + kOtherRows > bounds.inner_end) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int key = first_key + j * 8 + lane % 4 * 2 + c % 2;
        p[0][j][c] = rows.seen[c / 2].has(key) ? p[0][j][c] : 0.0F;
      }
    }
  }
  wait_for_products<0>();
  settle(ds);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      ds[0][j][c] = p[0][j][c] * (ds[0][j][c] - rows.of_head[c / 2].y);
    }
  }
  uint32_t left[1][4][4];
  to_fragments<1, 64>(ds, left);
  begin_products();
  start_nn<kD>(left, stage, dq);
  commit_products();
  wait_for_products<0>();
  settle(dq);
}

// Grid: H, tiles of rows from the last to the first.
template <class Tile>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(Tile::kThreads), Tile::kResident)
    group_backward_queries(const AttentionCall call, const BackwardTensors<__nv_bfloat16> tensors) {
#if WICK_GROUP_THREADS(1) == 1
  constexpr int kD = Tile::kD;
  extern __shared__ __align__(1024) unsigned char unaligned[];
  unsigned char* shared = align_panels(unaligned);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Tile::kOwn;
  const int rows = min(call.Tq - first_row, Tile::kOwn);
  const int q_row = call.H * kD;
  const int k_row = call.G * kD;
  const int64_t q_at = static_cast<int64_t>(first_row) * q_row + h * kD;
  const uint32_t own = shared_address(shared);
  load_panels<kD, Tile::kOwn, Tile::kThreads>({tensors.q + q_at, 2 * q_row, rows, kD / 8}, own);
  load_panels<kD, Tile::kOwn, Tile::kThreads>({tensors.d_o + q_at, 2 * q_row, rows, kD / 8},
                                              own + Tile::kOwnBytes);
  commit_copies();

  const VisibleKeys* all_keys = tensors.statistics.keys + first_row;
  const KeyBounds of_tile = key_bounds(all_keys, rows);
  const int group_row = min(group * kGroupRows, rows - 1);
  const KeyBounds of_group = key_bounds(all_keys + group_row, min(rows - group_row, kGroupRows));
  LaneRows mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(warp_row + half * 8 + lane / 4, rows - 1);
    mine.seen[half] = all_keys[row];
    mine.of_head[half] =
        tensors.statistics.of_heads[static_cast<int64_t>(h) * call.Tq + first_row + row];
  }
  const uint32_t stages = own + 2 * Tile::kOwnBytes;
  const auto load_keys = [&](int first_key, int to) {
    const uint32_t stage = stages + to * 2 * Tile::kOtherBytes;
    const int64_t at = static_cast<int64_t>(first_key) * k_row + g * kD;
    const int count = min(of_tile.end - first_key, kOtherRows);
    load_panels<kD, kOtherRows, Tile::kThreads>({tensors.k + at, 2 * k_row, count, kD / 8}, stage);
    load_panels<kD, kOtherRows, Tile::kThreads>({tensors.v + at, 2 * k_row, count, kD / 8},
                                                stage + Tile::kOtherBytes);
    commit_copies();
  };

  float dq[1][kD / 8][4] = {};
  const float scale2 = call.scale * kLog2E;
  int stage = 1;
  if (of_tile.begin < of_tile.end) {
    load_keys(of_tile.begin, 0);
  }
  for (int first_key = of_tile.begin; first_key < of_tile.end; first_key += kOtherRows) {
    publish_copies();
    __syncthreads();  // the tiles are there, and those before them are no longer read
    stage ^= 1;
    if (first_key + kOtherRows < of_tile.end) {
      load_keys(first_key + kOtherRows, stage ^ 1);
    }
    add_to_queries<Tile>(own + group * kGroupPanelBytes, stages + stage * 2 * Tile::kOtherBytes,
                         mine, of_group, first_key, scale2, dq);
  }
  wait_for_copies<0>();
  __syncthreads();  // the tiles are no longer read, and make room for the results
  scale_rows<kD>(call.scale, dq);
  store_rows<kD, 1>(
      dq, shared + warp_row * kRowBytes<kD>,
      {tensors.dq + q_at + static_cast<int64_t>(warp_row) * q_row, q_row, rows - warp_row, kD / 8});
#endif
}

template <class KeysTile, class QueriesTile>
bool launch_groups(const Context& context, const AttentionCall& call,
                   const BackwardTensors<__nv_bfloat16>& tensors) {
  const auto keys_kernel = group_backward_keys<KeysTile>;
  const auto queries_kernel = group_backward_queries<QueriesTile>;
  if (!runs_groups(context, keys_kernel)) {
    return false;
  }
  if (call.Tk > 0) {
    const dim3 grid(call.G * tensors.parts, divide_up(call.Tk, KeysTile::kOwn));
    allow_shared(keys_kernel, KeysTile::kSharedBytes);
    keys_kernel<<<grid, KeysTile::kThreads, KeysTile::kSharedBytes, context.stream>>>(call,
                                                                                      tensors);
    check_launch("attention_backward of keys");
  }
  if (call.Tq > 0) {
    const dim3 grid(call.H, divide_up(call.Tq, QueriesTile::kOwn));
    allow_shared(queries_kernel, QueriesTile::kSharedBytes);
    queries_kernel<<<grid, QueriesTile::kThreads, QueriesTile::kSharedBytes, context.stream>>>(
        call, tensors);
    check_launch("attention_backward of queries");
  }
  return true;
}

}  // namespace

bool backward_groups(const Context& context, const AttentionCall& call,
                     const BackwardTensors<__nv_bfloat16>& tensors) {
  if (call.D == 64) {
    return launch_groups<BackwardGroups<64, 1, 3>, BackwardGroups<64, 1, 4>>(context, call,
                                                                             tensors);
  }
  return call.D == 128 && launch_groups<BackwardGroups<128, 1, 2>, BackwardGroups<128, 1, 2>>(
                              context, call, tensors);
}

}  // namespace wick::cuda
