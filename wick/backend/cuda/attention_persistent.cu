// Attention forward of many rows by blocks that stay, for heads of 64 and 128 on compute capability
// 9.0.
//
// One block a multiprocessor takes tile after tile of rows. A group of four warps with few
// registers finds what the rows of the next tile see, and has the copy engine bring queries, keys
// and values, ahead of two groups that multiply: these have the registers for 128 keys at a time,
// and for the scores of the next keys while the product with the last values runs. They take turns
// at starting products, so that one weighs its scores while the other multiplies (FlashAttention-3,
// Shah et al., 2024).
//
// Which block has which rows is decided as it goes, by a counter; what comes out does not depend on
// it. Memory: the counter.
#include "wick/backend/cuda/attention_persistent.cuh"

#include "wick/backend/cuda/attention_softmax.cuh"
#include "wick/backend/cuda/tensor_map.h"
#include "wick/backend/cuda/wide_products.cuh"

namespace wick::cuda {

namespace persistent {
namespace {

template <int kD>
struct Sums {
  float scores[1][kKeys / 8][4];
  float o[1][kD / 8][4];
  uint32_t p[1][kKeys / 16][4];
  RunningSoftmax<1> softmax;
};

template <int kD>
__device__ __forceinline__ void start_scores(uint32_t queries, uint32_t keys, Sums<kD>& sums) {
  auto& scores = reinterpret_cast<float(&)[kKeys / 2]>(sums.scores);
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    const uint32_t offset = step / 4 * kPanelBytes + step % 4 * 32;
    multiply_panels(panel_descriptor(queries + offset), panel_descriptor(keys + offset), step > 0,
                    scores);
  }
  commit_products();
}

template <int kD>
__device__ __forceinline__ void start_results(uint32_t values, Sums<kD>& sums) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    const uint64_t right = rows_descriptor<128>(values + step * 16 * kPanelRowBytes);
    if constexpr (kD == 64) {
      add_product_of_rows(sums.p[0][step], right, sums.o[0]);
    } else {
      add_registers_of_rows(sums.p[0][step], right, reinterpret_cast<float(&)[kD / 2]>(sums.o));
    }
  }
  commit_products();
}

// The rows of a group through all keys of the tile.
template <int kD>
__device__ __forceinline__ void attend(uint32_t shared, int group, const VisibleKeys* seen,
                                       const KeyBounds& of_tile, const KeyBounds& of_group,
                                       float scale2, Barriers& barriers, Position& at,
                                       Sums<kD>& sums) {
  using At = Places<kD>;
  const uint32_t queries = shared + group * kGroupPanelBytes;
  const uint32_t keys = shared + At::kKeysAt;
  const uint32_t values = shared + At::kValuesAt;
  float factors[2];
  const auto weigh = [&](int first_key) {
    if (first_key < of_group.inner_begin || first_key + kKeys > of_group.inner_end) {
      mask_scores<1, kKeys>(seen, first_key, sums.scores);
    }
    factors[0] = sums.softmax.template weigh<kKeys>(0, 0, scale2, sums.scores);
    factors[1] = sums.softmax.template weigh<kKeys>(0, 1, scale2, sums.scores);
  };

  wait_for_barrier(shared_address(&barriers.keys_there[at.stage]), at.round);
  begin_products();
  start_scores(queries, keys + at.stage * At::kTileBytes, sums);
  wait_for_products<0>();
  settle(sums.scores);
  leave(barriers.keys_done[at.stage]);
  weigh(of_tile.begin);
  to_fragments<1, kKeys>(sums.scores, sums.p);
  for (int first_key = of_tile.begin + kKeys; first_key < of_tile.end; first_key += kKeys) {
    const Position last = at;
    at.advance();
    wait_for_barrier(shared_address(&barriers.keys_there[at.stage]), at.round);
    take_turn(group);
    begin_products();
    start_scores(queries, keys + at.stage * At::kTileBytes, sums);
    wait_for_barrier(shared_address(&barriers.values_there[last.stage]), last.round);
    begin_products();
    start_results(values + last.stage * At::kTileBytes, sums);
    give_turn(group);
    wait_for_products<1>();
    settle(sums.scores);
    leave(barriers.keys_done[at.stage]);
    weigh(first_key);
    wait_for_products<0>();
    settle(sums.o);
    leave(barriers.values_done[last.stage]);
    RunningSoftmax<1>::template rescale<kD>(0, 0, factors[0], sums.o);
    RunningSoftmax<1>::template rescale<kD>(0, 1, factors[1], sums.o);
    to_fragments<1, kKeys>(sums.scores, sums.p);
  }
  leave(barriers.queries_done);
  wait_for_barrier(shared_address(&barriers.values_there[at.stage]), at.round);
  begin_products();
  start_results(values + at.stage * At::kTileBytes, sums);
  wait_for_products<0>();
  settle(sums.o);
  leave(barriers.values_done[at.stage]);
  at.advance();
}

template <int kD>
__device__ __forceinline__ void attend_all(const PersistentArgs& args, unsigned char* shared,
                                           Work* works, Barriers& barriers) {
  const AttentionCall& call = args.call;
  const int group = static_cast<int>(threadIdx.x / kGroupThreads) - 1;
  const int warp_row = static_cast<int>(threadIdx.x / 32 - 4) * 16;
  const float scale2 = call.scale * kLog2E;
  unsigned char* stage = shared + Places<kD>::kResultsAt + warp_row * kRowBytes<kD>;
  Position at;
  uint32_t queries_phase = 0;
  if (group == 1) {
    give_turn(group);
  }
  for (uint32_t n = 0;; ++n) {
    Work& work = works[n % 2];
    wait_for_barrier(shared_address(&barriers.work_there[n % 2]), n / 2 % 2);
    if (work.item >= args.items) {
      break;
    }
    const auto [head, first_row] = item_of(args, work.item);
    const KeyBounds of_tile = key_bounds(work.ranges, kRows);
    Sums<kD> sums;
    sums.softmax.start();
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      sums.o[0][j][0] = sums.o[0][j][1] = sums.o[0][j][2] = sums.o[0][j][3] = 0.0F;
    }
    if (of_tile.begin < of_tile.end) {
      const KeyBounds of_group = key_bounds(work.ranges + group * kGroupRows, kGroupRows);
      wait_for_barrier(shared_address(&barriers.queries_there), queries_phase);
      queries_phase ^= 1;
      attend<kD>(shared_address(shared), group, work.ranges + warp_row, of_tile, of_group, scale2,
                 barriers, at, sums);
    }
    leave(barriers.work_done[n % 2]);
    const int rows = min(call.Tq - first_row, kRows) - warp_row;
    const int row_elements = call.H * kD;
    const int64_t first = static_cast<int64_t>(first_row + warp_row);
    sums.softmax.template finish<kD>(scale2, sums.o, [&, head = head](int row, float value) {
      if (args.tensors.lse != nullptr && threadIdx.x % 4 == 0 && row < rows) {
        args.tensors.lse[(first + row) * call.H + head] = value;
      }
    });
    store_rows<kD, 1>(
        sums.o, stage,
        {args.tensors.o + first * row_elements + head * kD, row_elements, rows, kD / 8});
  }
  if (group == 0) {
    take_turn(group);  // which the other group gave last
  }
}

template <int kD>
__global__ void __launch_bounds__(WICK_GROUP_THREADS(kThreads), 1)
    attention_persistent_kernel(const __grid_constant__ PersistentArgs args) {
#if WICK_GROUP_THREADS(1) == 1
  extern __shared__ __align__(1024) unsigned char unaligned[];
  __shared__ Work works[2];
  __shared__ Barriers barriers;
  unsigned char* shared = align_panels(unaligned);
  if (threadIdx.x == 0) {
    start_barriers(barriers);
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    leave_registers<kRegistersToLoad>();
    bring_all<kD>(args, shared_address(shared), works, barriers);
  } else {
    take_registers<kRegistersToMultiply>();
    attend_all<kD>(args, shared, works, barriers);
  }
#endif
}

// Where it was measured to gain: enough tiles for a device, and at D = 64 long runs, since what a
// tile costs once is not hidden. By the shapes alone, so that results do not depend on the device.
bool gains(const AttentionCall& call) {
  constexpr int64_t kTiles = 128;
  constexpr int64_t kLongRun = 1024;
  const int64_t tiles = int64_t{call.H} * divide_up(call.Tq, kRows);
  return call.Tk > 0 && tiles >= kTiles && (call.D == 128 || call.Tq >= kLongRun * call.S);
}

template <int kD>
bool launch(const Context& context, const AttentionCall& call,
            const ForwardTensors<__nv_bfloat16>& tensors) {
  if (!gains(call) || !runs_groups(context, attention_persistent_kernel<kD>) ||
      !has_tensor_maps()) {
    return false;
  }
  const Scratch next(context, sizeof(int));
  check_cuda(cudaMemsetAsync(next.as<int>(), 0, sizeof(int), context.stream),
             "attention's counter");
  const int items = call.H * divide_up(call.Tq, kRows);
  const int q_row = call.H * kD;
  const int k_row = call.G * kD;
  const PersistentArgs args{row_map({tensors.q, call.Tq, q_row, q_row}, kRows),
                            row_map({tensors.k, call.Tk, k_row, k_row}, kKeys),
                            row_map({tensors.v, call.Tk, k_row, k_row}, kKeys),
                            call,
                            tensors,
                            next.as<int>(),
                            items};
  allow_shared(attention_persistent_kernel<kD>, Places<kD>::kBytes);
  attention_persistent_kernel<kD>
      <<<std::min(items, context.multiprocessors), kThreads, Places<kD>::kBytes, context.stream>>>(
          args);
  check_launch("attention by blocks that stay");
  return true;
}

}  // namespace
}  // namespace persistent

bool attention_persistent(const Context& context, const AttentionCall& call,
                          const ForwardTensors<__nv_bfloat16>& tensors) {
  return call.D == 64    ? persistent::launch<64>(context, call, tensors)
         : call.D == 128 ? persistent::launch<128>(context, call, tensors)
                         : false;
}

}  // namespace wick::cuda
