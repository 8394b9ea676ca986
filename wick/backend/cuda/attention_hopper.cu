// Attention forward by groups of four warps, for heads of 64 and 128 on compute capability 9.0.
//
// As in attention.cu (FlashAttention-2, Dao, 2023), with the products of wgmma: see
// attention_groups.cuh, a group a block. The groups of a multiprocessor run into each other's gaps.
// For many rows there is attention_persistent.cu.
//
// Memory: none.
#include "wick/backend/cuda/attention_groups.cuh"
#include "wick/backend/cuda/attention_softmax.cuh"

namespace wick::cuda {

namespace {

template <int kHead, int kBlocksResident>
struct GroupTile {
  static constexpr int kD = kHead;
  static constexpr int kResident = kBlocksResident;  // blocks a multiprocessor
  static constexpr int kKeys = 64;
  static constexpr int kRows = kGroupRows;
  static constexpr int kTileBytes = kKeys * kD * 2;
  // Queries; keys and values twice, since the next are loaded meanwhile; what the rows see.
  static constexpr int kKeysAt = kRows * kD * 2;
  static constexpr int kRangesAt = kKeysAt + 4 * kTileBytes;
  static constexpr int kSharedBytes =
      kRangesAt + kRows * static_cast<int>(sizeof(VisibleKeys)) + kPanelAlignment;
};

// The keys and values of a stage, of which the rows see `bounds`.
template <class Tile>
__device__ __forceinline__ void attend_group(uint32_t queries, uint32_t stage,
                                             const VisibleKeys* seen, const KeyBounds& bounds,
                                             int first_key, float scale2,
                                             RunningSoftmax<1>& softmax,
                                             float (&o)[1][Tile::kD / 8][4]) {
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  float scores[1][kKeys / 8][4];
  begin_products();
  start_nt<kD, Tile::kRows * kPanelRowBytes>(queries, stage, scores);
  commit_products();
  wait_for_products<0>();
  settle(scores);
  if (first_key < bounds.inner_begin || first_key + kKeys > bounds.inner_end) {
    mask_scores<1, kKeys>(seen, first_key, scores);
  }
  softmax.template step<kKeys, kD>(scale2, scores, o);
  uint32_t p[1][kKeys / 16][4];
  to_fragments<1, kKeys>(scores, p);
  begin_products();
  start_nn<kD>(p, stage + Tile::kTileBytes, o);
  commit_products();
  wait_for_products<0>();
  settle(o);
}

// Grid: H, tiles of rows from the last to the first, since those usually see the most keys.
template <class Tile>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kGroupThreads), Tile::kResident)
    attention_groups_kernel(const AttentionCall call, const ForwardTensors<__nv_bfloat16> tensors) {
#if WICK_GROUP_THREADS(1) == 1
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  extern __shared__ __align__(1024) unsigned char unaligned[];
  unsigned char* shared = align_panels(unaligned);
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Tile::kRows;
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int q_row = call.H * kD;
  const int k_row = call.G * kD;
  const int64_t q_at = static_cast<int64_t>(first_row) * q_row + h * kD;
  const int rows = min(call.Tq - first_row, Tile::kRows);
  load_panels<kD, Tile::kRows, kGroupThreads>({tensors.q + q_at, 2 * q_row, rows, kD / 8},
                                              shared_address(shared));
  commit_copies();
  auto* ranges = reinterpret_cast<VisibleKeys*>(shared + Tile::kRangesAt);
  for (int row = static_cast<int>(threadIdx.x); row < Tile::kRows; row += kGroupThreads) {
    ranges[row] = visible_keys(call, first_row + min(row, rows - 1));
  }
  __syncthreads();
  const KeyBounds bounds = key_bounds(ranges, Tile::kRows);
  const auto load_keys = [&](int first_key, uint32_t stage) {
    const int64_t at = static_cast<int64_t>(first_key) * k_row + g * kD;
    // What no row sees is zero: a cache may hold anything there, and 0 times anything may be NaN.
    const int count = min(bounds.end - first_key, kKeys);
    load_panels<kD, kKeys, kGroupThreads>({tensors.k + at, 2 * k_row, count, kD / 8}, stage);
    load_panels<kD, kKeys, kGroupThreads>({tensors.v + at, 2 * k_row, count, kD / 8},
                                          stage + Tile::kTileBytes);
    commit_copies();
  };

  float o[1][kD / 8][4] = {};
  RunningSoftmax<1> softmax;
  softmax.start();
  const float scale2 = call.scale * kLog2E;
  const uint32_t queries = shared_address(shared);
  uint32_t stage = shared_address(shared) + Tile::kKeysAt;
  const uint32_t both = 2 * stage + 2 * Tile::kTileBytes;
  if (bounds.begin < bounds.end) {
    load_keys(bounds.begin, both - stage);
  }
  for (int first_key = bounds.begin; first_key < bounds.end; first_key += kKeys) {
    publish_copies();
    __syncthreads();  // the tile is there, and the one before it is no longer read
    stage = both - stage;
    if (first_key + kKeys < bounds.end) {
      load_keys(first_key + kKeys, both - stage);
    }
    attend_group<Tile>(queries, stage, ranges + warp_row, bounds, first_key, scale2, softmax, o);
  }
  wait_for_copies<0>();
  __syncthreads();  // the tiles are no longer read, and make room for the results

  softmax.template finish<kD>(scale2, o, [&](int row, float value) {
    if (tensors.lse != nullptr && threadIdx.x % 4 == 0 && warp_row + row < rows) {
      tensors.lse[static_cast<int64_t>(first_row + warp_row + row) * call.H + h] = value;
    }
  });
  store_rows<kD, 1>(
      o, shared + warp_row * kRowBytes<kD>,
      {tensors.o + q_at + static_cast<int64_t>(warp_row) * q_row, q_row, rows - warp_row, kD / 8});
#endif
}

template <class Tile>
bool launch_groups(const Context& context, const AttentionCall& call,
                   const ForwardTensors<__nv_bfloat16>& tensors) {
  if (!runs_groups(context, attention_groups_kernel<Tile>)) {
    return false;
  }
  const dim3 grid(call.H, divide_up(call.Tq, Tile::kRows));
  allow_shared(attention_groups_kernel<Tile>, Tile::kSharedBytes);
  attention_groups_kernel<Tile>
      <<<grid, kGroupThreads, Tile::kSharedBytes, context.stream>>>(call, tensors);
  check_launch("attention by groups");
  return true;
}

}  // namespace

bool attention_groups(const Context& context, const AttentionCall& call,
                      const ForwardTensors<__nv_bfloat16>& tensors) {
  return call.D == 64    ? launch_groups<GroupTile<64, 4>>(context, call, tensors)
         : call.D == 128 ? launch_groups<GroupTile<128, 2>>(context, call, tensors)
                         : false;
}

}  // namespace wick::cuda
