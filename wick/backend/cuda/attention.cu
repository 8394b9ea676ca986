// Attention forward on tensor cores, and the choice between the roads of the forward pass.
//
// FlashAttention (Dao et al., 2022; FlashAttention-2, Dao, 2023): a block keeps a tile of queries
// of one head and walks over the keys that its rows see, with a running softmax, so that scores
// never leave the registers. Tiles are cut from the packed rows, whatever the runs: a tile that
// straddles runs walks over the keys of all of them and masks by row.
//
// Bound by the tensor cores: 4 D flops a visible pair and head, three times as many of f32, against
// 2 loads of 2 D bytes a key tile, which the L2 serves. Exponentials (one a pair) bind bf16 at D <=
// 64. Memory: none.
#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/attention_softmax.cuh"
#include "wick/backend/cuda/attention_tiles.cuh"

namespace wick::cuda {

namespace {

// A warp owns 16 kBlocks rows: two blocks halve the reads of key tiles from shared memory, which
// would else bind before the tensor cores do (of f32, which takes longer, one does). That takes all
// registers: at D = 128 two words of a thread, and at 64 (for three blocks a multiprocessor) four,
// lie in local memory and are read once a tile of keys. With one stage the tensor cores wait for
// each tile: where shared memory is short.
template <class T, int kHead, int kRowBlocks, int kKeysOfTile, int kStagesOfBlock = 2>
struct ForwardTile {
  using Element = T;
  static constexpr int kD = kHead;
  static constexpr int kBlocks = kRowBlocks;
  static constexpr int kKeys = kKeysOfTile;
  static constexpr int kRows = kTileWarps * 16 * kBlocks;
  static constexpr int kTileBytes = kKeys * kRowBytes<kD, T>;
  // Blocks a multiprocessor, as far as registers go: the exponentials of some run beside the
  // products of others.
  static constexpr int kResident = kD <= 64 && sizeof(T) == 2 ? 3 : 2;
  static constexpr int kStages = kStagesOfBlock;
  // Queries; keys and values, twice where the next are loaded meanwhile; what the rows see.
  static constexpr int kKeysAt = kRows * kRowBytes<kD, T>;
  static constexpr int kRangesAt = kKeysAt + 2 * kStages * kTileBytes;
  static constexpr int kSharedBytes = kRangesAt + kRows * static_cast<int>(sizeof(VisibleKeys));
};

// The keys and values of a stage, for a warp whose rows see `seen` of them.
template <class Tile>
__device__ __forceinline__ void attend_tile(uint32_t queries, uint32_t stage,
                                            const VisibleKeys* seen, const KeyBounds& bounds,
                                            int first_key, float scale2,
                                            RunningSoftmax<Tile::kBlocks>& softmax,
                                            float (&o)[Tile::kBlocks][Tile::kD / 8][4]) {
  using T = typename Tile::Element;
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  if (first_key >= bounds.end || first_key + kKeys <= bounds.begin) {
    return;
  }
  float scores[Tile::kBlocks][kKeys / 8][4] = {};
  multiply_nt<kD, Tile::kBlocks, kKeys, T>(queries, stage + right_lane<kD, T>(), scores);
  if (first_key < bounds.inner_begin || first_key + kKeys > bounds.inner_end) {
    mask_scores<Tile::kBlocks, kKeys>(seen, first_key, scores);
  }
  softmax.template step<kKeys, kD, T>(scale2, scores, o);
  add_weighted<kD, Tile::kBlocks, kKeys, T>(scores, stage + Tile::kTileBytes, o);
}

// Grid: H, tiles of rows from the last to the first, since those usually see the most keys.
template <class Tile>
__global__ void __launch_bounds__(kTileThreads, Tile::kResident)
    attention_kernel(const AttentionCall call,
                     const ForwardTensors<typename Tile::Element> tensors) {
  using T = typename Tile::Element;
  constexpr int kBytes = sizeof(T);
  constexpr int kD = Tile::kD;
  constexpr int kKeys = Tile::kKeys;
  extern __shared__ __align__(16) unsigned char shared[];
  const int h = static_cast<int>(blockIdx.x);
  const int g = h / (call.H / call.G);
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Tile::kRows;
  const int warp_row = static_cast<int>(threadIdx.x / 32) * 16 * Tile::kBlocks;
  const int chunks = call.D * kBytes / 16;
  const int q_row = call.H * call.D;
  const int k_row = call.G * call.D;
  const int64_t q_at = static_cast<int64_t>(first_row) * q_row + h * call.D;
  const int rows = min(call.Tq - first_row, Tile::kRows);
  load_tile<kD, Tile::kRows, T>({tensors.q + q_at, kBytes * q_row, rows, chunks},
                                shared_address(shared));
  commit_copies();
  auto* ranges = reinterpret_cast<VisibleKeys*>(shared + Tile::kRangesAt);
  for (int row = static_cast<int>(threadIdx.x); row < Tile::kRows; row += kTileThreads) {
    ranges[row] = visible_keys(call, first_row + min(row, rows - 1));
  }
  __syncthreads();
  const KeyBounds of_tile = key_bounds(ranges, Tile::kRows);
  const KeyBounds of_warp = key_bounds(ranges + warp_row, 16 * Tile::kBlocks);
  const auto load_keys = [&](int first_key, uint32_t stage) {
    const int64_t at = static_cast<int64_t>(first_key) * k_row + g * call.D;
    // What no row sees is zero: a cache may hold anything there, and 0 times anything may be NaN.
    const int count = min(of_tile.end - first_key, kKeys);
    load_tile<kD, kKeys, T>({tensors.k + at, kBytes * k_row, count, chunks}, stage);
    load_tile<kD, kKeys, T>({tensors.v + at, kBytes * k_row, count, chunks},
                            stage + Tile::kTileBytes);
    commit_copies();
  };

  float o[Tile::kBlocks][kD / 8][4] = {};
  RunningSoftmax<Tile::kBlocks> softmax;
  softmax.start();
  const float scale2 = call.scale * kLog2E;
  const uint32_t queries =
      shared_address(shared) + warp_row * kRowBytes<kD, T> + left_lane<kD, T>();
  uint32_t stage = shared_address(shared) + Tile::kKeysAt;
  const uint32_t both = 2 * stage + (Tile::kStages - 1) * 2 * Tile::kTileBytes;
  if (of_tile.begin < of_tile.end) {
    load_keys(of_tile.begin, both - stage);
  }
  for (int first_key = of_tile.begin; first_key < of_tile.end; first_key += kKeys) {
    wait_for_copies<0>();
    __syncthreads();  // the tile is there, and the one before it is no longer read
    stage = both - stage;
    const auto load_next = [&] {
      if (first_key + kKeys < of_tile.end) {
        load_keys(first_key + kKeys, both - stage);
      }
    };
    if (Tile::kStages > 1) {
      load_next();
    }
    attend_tile<Tile>(queries, stage, ranges + warp_row, of_warp, first_key, scale2, softmax, o);
    if (Tile::kStages == 1) {
      __syncthreads();
      load_next();
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // where no row sees a key, the queries may only now have come

  softmax.template finish<kD, T>(scale2, o, [&](int row, float value) {
    if (tensors.lse != nullptr && threadIdx.x % 4 == 0 && warp_row + row < rows) {
      tensors.lse[static_cast<int64_t>(first_row + warp_row + row) * call.H + h] = value;
    }
  });
  store_rows<kD, Tile::kBlocks>(
      o, shared + warp_row * kRowBytes<kD, T>,
      {tensors.o + q_at + warp_row * q_row, q_row, rows - warp_row, chunks});
}

template <class Tile>
void launch_tiles(const Context& context, const AttentionCall& call,
                  const ForwardTensors<typename Tile::Element>& tensors) {
  const dim3 grid(call.H, divide_up(call.Tq, Tile::kRows));
  allow_shared(attention_kernel<Tile>, Tile::kSharedBytes);
  attention_kernel<Tile><<<grid, kTileThreads, Tile::kSharedBytes, context.stream>>>(call, tensors);
  check_launch("attention");
}

// The second where a block may not have so much shared memory as the first takes.
template <class Tile, class Smaller>
void launch_tiles_that_fit(const Context& context, const AttentionCall& call,
                           const ForwardTensors<typename Tile::Element>& tensors) {
  if (has_shared(context, Tile::kSharedBytes)) {
    launch_tiles<Tile>(context, call, tensors);
  } else {
    launch_tiles<Smaller>(context, call, tensors);
  }
}

// Heads between these sizes are padded with zeros.
void attention_tiles(const Context& context, const AttentionCall& call,
                     const ForwardTensors<__nv_bfloat16>& tensors) {
  using T = __nv_bfloat16;
  if (call.D <= 64) {
    launch_tiles<ForwardTile<T, 64, 2, 64>>(context, call, tensors);
  } else if (call.D <= 80) {
    launch_tiles<ForwardTile<T, 80, 2, 64>>(context, call, tensors);
  } else if (call.D <= 96) {
    launch_tiles<ForwardTile<T, 96, 2, 64>>(context, call, tensors);
  } else if (call.D <= 128) {
    launch_tiles_that_fit<ForwardTile<T, 128, 2, 64>, ForwardTile<T, 128, 2, 32>>(context, call,
                                                                                  tensors);
  } else {
    launch_tiles_that_fit<ForwardTile<T, 256, 1, 32>, ForwardTile<T, 256, 1, 16>>(context, call,
                                                                                  tensors);
  }
}
// Tiles of f32 have as many keys on all devices, so that results are the same.
void attention_tiles(const Context& context, const AttentionCall& call,
                     const ForwardTensors<float>& tensors) {
  if (call.D <= 64) {
    launch_tiles<ForwardTile<float, 64, 1, 64>>(context, call, tensors);
  } else if (call.D <= 96) {
    launch_tiles_that_fit<ForwardTile<float, 96, 1, 32>, ForwardTile<float, 96, 1, 32, 1>>(
        context, call, tensors);
  } else {
    launch_tiles_that_fit<ForwardTile<float, 128, 1, 32>, ForwardTile<float, 128, 1, 32, 1>>(
        context, call, tensors);
  }
}

template <class T>
ForwardTensors<T> forward_tensors(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& o, const Tensor& lse) {
  return {q.data<T>(), k.data<T>(), v.data<T>(), o.data<T>(), lse ? lse.data<float>() : nullptr};
}

}  // namespace

void attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& spans, const AttentionArgs& args, const Tensor& o, const Tensor& lse) {
  const AttentionCall call = attention_call(q, k, spans, args);
  check_head_size(call.D);
  if (o.elements() == 0) {
    return;
  }
  // The running softmax takes the largest score before the scale, which must not turn the order.
  const DType type = q.dtype();
  const bool chunked = in_chunks(q, type) && in_chunks(k, type) && in_chunks(v, type) &&
                       in_chunks(o, type) && args.scale > 0.0F;
  const bool few = call.Tq <= 64 && call.Tk >= 8 * call.Tq;
  if (!chunked || (type == DType::f32 && (few || call.D > 128))) {
    attention_plain(context, q, k, v, call, o, lse);
  } else if (type == DType::f32) {
    attention_tiles(context, call, forward_tensors<float>(q, k, v, o, lse));
  } else if (few) {
    attention_decode(context, q, k, v, call, o, lse);
  } else {
    const auto tensors = forward_tensors<__nv_bfloat16>(q, k, v, o, lse);
    if (!attention_persistent(context, call, tensors) &&
        !attention_groups(context, call, tensors)) {
      attention_tiles(context, call, tensors);
    }
  }
}

}  // namespace wick::cuda
