// What the blocks of attention_persistent.cu have in shared memory, the group of warps that fills
// it, and how its groups wait for each other.
#pragma once

#include "wick/backend/cuda/attention_groups.cuh"
#include "wick/backend/cuda/tensor_copy.cuh"
#include "wick/backend/cuda/warp_roles.cuh"

namespace wick::cuda::persistent {

constexpr int kGroups = 2;  // that multiply
constexpr int kRows = kGroups * kGroupRows;
constexpr int kKeys = 128;
constexpr int kStages = 2;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kPanelBytes = 128 * kPanelRowBytes;
static_assert(kRows == 128 && kKeys == 128);
// Of a thread.
constexpr int kRegistersToMultiply = 232;
constexpr int kRegistersToLoad = kRegistersOfThree - kGroups * kRegistersToMultiply;

// Stages of keys and values.
using Position = RingPlace<kStages>;

template <int kD>
struct Places {  // in shared memory
  static constexpr int kTileBytes = kD / 64 * kPanelBytes;
  static constexpr int kKeysAt = kTileBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kResultsAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kBytes = kResultsAt + kRows * kRowBytes<kD> + kPanelAlignment;
};

// A tile of rows of a head, and what it sees.
struct Work {
  int item;
  VisibleKeys ranges[kRows];
};

// Pairs of what is there and what may be overwritten.
struct Barriers {
  uint64_t work_there[2], work_done[2];
  uint64_t queries_there, queries_done;
  uint64_t keys_there[kStages], keys_done[kStages];
  uint64_t values_there[kStages], values_done[kStages];
};

struct PersistentArgs {
  CUtensorMap q, k, v;
  AttentionCall call;
  ForwardTensors<__nv_bfloat16> tensors;
  int* next;  // item; 0 at first
  int items;
};

// From the last rows to the first, since those usually see the most keys.
struct Item {
  int head, first_row;
};
__device__ __forceinline__ Item item_of(const PersistentArgs& args, int item) {
  const int H = args.call.H;
  return {item % H, (args.items / H - 1 - item / H) * kRows};
}

__device__ __forceinline__ void start_barriers(Barriers& all) {
  constexpr uint32_t kWarps = kGroups * 4;
  const auto start = [](uint64_t& there, uint32_t arrivals, uint64_t& done) {
    start_barrier_of(shared_address(&there), arrivals);
    start_barrier_of(shared_address(&done), kWarps);
  };
  for (int i = 0; i < 2; ++i) {
    start(all.work_there[i], kGroupThreads, all.work_done[i]);
  }
  start(all.queries_there, 1, all.queries_done);
  for (int i = 0; i < kStages; ++i) {
    start(all.keys_there[i], 1, all.keys_done[i]);
    start(all.values_there[i], 1, all.values_done[i]);
  }
  show_barriers_to_copies();
}

__device__ __forceinline__ void meet_loaders() {
  asm volatile("bar.sync 1, %0;" ::"n"(kGroupThreads) : "memory");
}

// To be called once the last reader of what was there is done.
template <int kD>
__device__ __forceinline__ void bring(const CUtensorMap& map, int head, int row, uint32_t to,
                                      uint64_t& there) {
  const uint32_t barrier = shared_address(&there);
  expect_bytes(barrier, Places<kD>::kTileBytes);
#pragma unroll
  for (int panel = 0; panel < kD / 64; ++panel) {
    copy_box(to + panel * kPanelBytes, map, head * kD + panel * 64, row, barrier);
  }
}

// The last values of a tile where what follows them is seen by no row: zero, since a cache may hold
// anything there, and 0 times anything may be NaN.
template <int kD>
__device__ __forceinline__ void copy_last_values(const PersistentArgs& args, int g, int first_key,
                                                 int count, uint32_t to, uint64_t& there) {
  const int k_row = args.call.G * kD;
  const __nv_bfloat16* from = args.tensors.v + static_cast<int64_t>(first_key) * k_row + g * kD;
  load_panels<kD, kKeys, kGroupThreads>({from, 2 * k_row, count, kD / 8}, to);
  commit_copies();
  publish_copies();
  meet_loaders();
  if (threadIdx.x == 0) {
    arrive(shared_address(&there));
  }
}

template <int kD>
__device__ __forceinline__ void bring_all(const PersistentArgs& args, uint32_t shared, Work* works,
                                          Barriers& barriers) {
  using At = Places<kD>;
  const AttentionCall& call = args.call;
  const bool asks = threadIdx.x == 0;
  Position at;
  uint32_t queries_phase = 0;
  for (uint32_t n = 0;; ++n) {
    Work& work = works[n % 2];
    wait_for_barrier(shared_address(&barriers.work_done[n % 2]), n / 2 % 2 ^ 1);
    if (asks) {
      work.item = atomicAdd(args.next, 1);
    }
    meet_loaders();
    if (work.item >= args.items) {
      arrive(shared_address(&barriers.work_there[n % 2]));
      return;
    }
    const auto [head, first_row] = item_of(args, work.item);
    const int g = head / (call.H / call.G);
    const int row = min(first_row + static_cast<int>(threadIdx.x), call.Tq - 1);
    work.ranges[threadIdx.x] = visible_keys(call, row);
    meet_loaders();
    const KeyBounds bounds = key_bounds(work.ranges, kRows);
    arrive(shared_address(&barriers.work_there[n % 2]));
    if (bounds.begin >= bounds.end) {
      continue;
    }
    if (asks) {
      wait_for_barrier(shared_address(&barriers.queries_done), queries_phase ^ 1);
      bring<kD>(args.q, head, first_row, shared, barriers.queries_there);
    }
    queries_phase ^= 1;
    for (int first_key = bounds.begin; first_key < bounds.end; first_key += kKeys) {
      const uint32_t keys = shared + At::kKeysAt + at.stage * At::kTileBytes;
      const uint32_t values = shared + At::kValuesAt + at.stage * At::kTileBytes;
      const int count = bounds.end - first_key;
      if (asks) {
        wait_for_barrier(shared_address(&barriers.keys_done[at.stage]), at.round ^ 1);
        bring<kD>(args.k, g, first_key, keys, barriers.keys_there[at.stage]);
        wait_for_barrier(shared_address(&barriers.values_done[at.stage]), at.round ^ 1);
      }
      if (count < kKeys) {
        meet_loaders();  // of them one alone has kept pace with the rounds
        copy_last_values<kD>(args, g, first_key, count, values, barriers.values_there[at.stage]);
      } else if (asks) {
        bring<kD>(args.v, g, first_key, values, barriers.values_there[at.stage]);
      }
      at.advance();
    }
  }
}

// Waits until the other group has started its products.
__device__ __forceinline__ void take_turn(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(kGroups * kGroupThreads) : "memory");
}
__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(2 + (group ^ 1)), "n"(kGroups * kGroupThreads)
               : "memory");
}

// Of a warp, with what it has read of a tile.
__device__ __forceinline__ void leave(uint64_t& done) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    arrive(shared_address(&done));
  }
}

}  // namespace wick::cuda::persistent
