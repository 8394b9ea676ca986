// Attention forward by groups of four warps, for heads of 64 and 128 on compute capability 9.0.
//
// As in attention.cu (FlashAttention-2, Dao, 2023), with the products of wgmma: see
// attention_groups.cuh. A block's groups share the tiles of keys and values, so that the L2 is read
// once for all their rows. Exponentials (one a pair, 16 a clock and multiprocessor) bind at D = 64,
// about twice as long as the tensor cores need; the groups of a multiprocessor run into each
// other's gaps.
//
// Memory: none.
#include "wick/backend/cuda/attention_groups.cuh"
#include "wick/backend/cuda/attention_softmax.cuh"

namespace wick::cuda {

namespace {

template <int kHead, int kGroupsOfBlock, int kBlocksResident>
struct GroupTile {
  static constexpr int kD = kHead;
  static constexpr int kGroups = kGroupsOfBlock;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kResident = kBlocksResident;  // blocks a multiprocessor
  static constexpr int kKeys = 64;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kTileBytes = kKeys * kD * 2;
  // Queries; keys and values twice, since the next are loaded meanwhile; what the rows see.
  static constexpr int kKeysAt = kRows * kD * 2;
  static constexpr int kRangesAt = kKeysAt + 4 * kTileBytes;
  static constexpr int kSharedBytes =
      kRangesAt + kRows * static_cast<int>(sizeof(VisibleKeys)) + kPanelAlignment;
};

// The keys and values of a stage, for a group whose rows see `bounds` of them.
template <class Tile>
__device__ __forceinline__ void attend_group(uint32_t queries, uint32_t stage,
                                             const VisibleKeys* seen, const KeyBounds& bounds,
                                             int first_key, float scale2,
                                             RunningSoftmax<1>& softmax,
                                             float (&o)[1][Tile::kD / 8][4]) {
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  if (first_key >= bounds.end || first_key + kKeys <= bounds.begin) {
    return;
  }
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
__global__ void __launch_bounds__(WICK_GROUP_THREADS(Tile::kThreads), Tile::kResident)
    attention_groups_kernel(const AttentionCall call, const ForwardTensors tensors) {
#if WICK_GROUP_THREADS(1) == 1
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  constexpr int kThreads = Tile::kThreads;
  extern __shared__ __align__(1024) unsigned char unaligned[];
  unsigned char* shared = align_panels(unaligned);
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Tile::kRows;
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int q_row = call.H * kD;
  const int k_row = call.G * kD;
  const int64_t q_at = static_cast<int64_t>(first_row) * q_row + h * kD;
  const int rows = min(call.Tq - first_row, Tile::kRows);
  load_panels<kD, Tile::kRows, kThreads>({tensors.q + q_at, 2 * q_row, rows, kD / 8},
                                         shared_address(shared));
  commit_copies();
  auto* ranges = reinterpret_cast<VisibleKeys*>(shared + Tile::kRangesAt);
  for (int row = static_cast<int>(threadIdx.x); row < Tile::kRows; row += kThreads) {
    ranges[row] = visible_keys(call, first_row + min(row, rows - 1));
  }
  __syncthreads();
  const KeyBounds of_tile = key_bounds(ranges, Tile::kRows);
  const KeyBounds of_group = key_bounds(ranges + group * kGroupRows, kGroupRows);
  const auto load_keys = [&](int first_key, uint32_t stage) {
    const int64_t at = static_cast<int64_t>(first_key) * k_row + g * kD;
    // What no row sees is zero: a cache may hold anything there, and 0 times anything may be NaN.
    const int count = min(of_tile.end - first_key, kKeys);
    load_panels<kD, kKeys, kThreads>({tensors.k + at, 2 * k_row, count, kD / 8}, stage);
    load_panels<kD, kKeys, kThreads>({tensors.v + at, 2 * k_row, count, kD / 8},
                                     stage + Tile::kTileBytes);
    commit_copies();
  };

  float o[1][kD / 8][4] = {};
  RunningSoftmax<1> softmax;
  softmax.start();
  const float scale2 = call.scale * kLog2E;
  const uint32_t queries = shared_address(shared) + group * kGroupPanelBytes;
  uint32_t stage = shared_address(shared) + Tile::kKeysAt;
  const uint32_t both = 2 * stage + 2 * Tile::kTileBytes;
  if (of_tile.begin < of_tile.end) {
    load_keys(of_tile.begin, both - stage);
  }
  for (int first_key = of_tile.begin; first_key < of_tile.end; first_key += kKeys) {
    publish_copies();
    __syncthreads();  // the tile is there, and the one before it is no longer read
    stage = both - stage;
    if (first_key + kKeys < of_tile.end) {
      load_keys(first_key + kKeys, both - stage);
    }
    attend_group<Tile>(queries, stage, ranges + warp_row, of_group, first_key, scale2, softmax, o);
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
                   const ForwardTensors& tensors) {
  if (!runs_groups(context, attention_groups_kernel<Tile>)) {
    return false;
  }
  const dim3 grid(call.H, divide_up(call.Tq, Tile::kRows));
  allow_shared(attention_groups_kernel<Tile>, Tile::kSharedBytes);
  attention_groups_kernel<Tile>
      <<<grid, Tile::kThreads, Tile::kSharedBytes, context.stream>>>(call, tensors);
  check_launch("attention by groups");
  return true;
}

}  // namespace

bool attention_groups(const Context& context, const AttentionCall& call,
                      const ForwardTensors& tensors) {
  if (call.D == 64) {
    return launch_groups<GroupTile<64, 1, 4>>(context, call, tensors);
  }
  if (call.D == 128) {
    // Few rows make more blocks of one group each.
    const bool few = static_cast<int64_t>(divide_up(call.Tq, 128)) * call.H < 256;
    return few ? launch_groups<GroupTile<128, 1, 2>>(context, call, tensors)
               : launch_groups<GroupTile<128, 2, 2>>(context, call, tensors);
  }
  return false;
}

}  // namespace wick::cuda
