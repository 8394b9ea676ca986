// Programs of one row: the ring in shared memory that weights come through.
//
// The last warp of a block goes through the phases ahead of the others, as far as the ring has
// room: it copies a phase's description to where they read it, and asks for the weights that the
// block will multiply. What is there before its row has come costs no time; only what a phase needs
// itself is asked for at once, the rest at a pace that leaves the memory to those that wait for it.
#pragma once

#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/row_exchange.cuh"
#include "wick/backend/cuda/weight_ring.cuh"

namespace wick::cuda {

constexpr int kDescribedPhases = 8;  // at a time

// A place in the ring.
struct StagePlace {
  int stage;
  uint32_t round;

  __device__ __forceinline__ void advance(int count, int stages) {
    stage += count;
    while (stage >= stages) {
      stage -= stages;
      ++round;
    }
  }
};

// The channels of a block: [first, first + channels) of a term, or of both of a gated pair.
struct BlockShare {
  int index;  // of the term
  int first, channels;
  int items;         // pieces of tiles
  StagePlace place;  // of the first
};

// Which keys a block takes of a phase of attention.
struct HeadShare {
  int position;  // of the token
  int g;         // the key head
  int blocks;    // that share it
  int block;     // of those
  VisibleKeys keys;

  __device__ __forceinline__ bool takes_part() const { return block < blocks; }
};

// Of a cache that is one run of keys.
__device__ __forceinline__ HeadShare head_share(const AttentionPhase& phase) {
  const int* run = phase.call.spans;
  const int position = phase.positions[0];
  const int k_begin = run[2];
  const int k_count = run[3];
  HeadShare share;
  share.position = position;
  share.keys.begin = k_begin + (phase.call.window > 0 ? max(k_count - phase.call.window, 0) : 0);
  share.keys.end = k_begin + k_count;
  const auto of_block =  // rounds are cheaper than an exchange
      static_cast<unsigned>(2 * kKeysOfWarp * phase.writers);
  const auto keys = static_cast<unsigned>(share.keys.end - share.keys.begin);
  share.blocks = max(1, min(phase.most_blocks, static_cast<int>((keys + of_block - 1) / of_block)));
  const auto heads = static_cast<unsigned>(phase.call.G);
  share.g = static_cast<int>(blockIdx.x % heads);
  share.block = static_cast<int>(blockIdx.x / heads);
  return share;
}

struct RowShared {
  RowPhase phase[kDescribedPhases];
  BlockShare share[kDescribedPhases];  // of a phase of linear layers
  HeadShare head[kDescribedPhases];    // of a phase of attention
  uint64_t described[kDescribedPhases];
  uint64_t finished[kDescribedPhases];
  uint64_t full[kMostRowStages];
  uint64_t empty[kMostRowStages];
  __align__(16) float squares[kProgramWarps];
  int multiplies;  // the phase whose row is there; read and written by atomics alone
};

__device__ __forceinline__ void start_row_shared(RowShared& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane < kMostRowStages) {
    start_barrier_of(shared_address(shared.full + lane), 1);
    start_barrier_of(shared_address(shared.empty + lane), 32 * kGroupWarps);
  }
  if (lane < kDescribedPhases) {
    start_barrier_of(shared_address(shared.described + lane), 32);
    start_barrier_of(shared_address(shared.finished + lane), 32 * (kProgramWarps + 1));
  }
  if (lane == 0) {
    shared.multiplies = -1;
  }
  show_barriers_to_copies();
}

// A phase's description, once it is there.
__device__ __forceinline__ const RowPhase& described_phase(RowShared& shared, int p) {
  const int slot = p % kDescribedPhases;
  wait_for_barrier(shared_address(shared.described + slot), p / kDescribedPhases % 2);
  return shared.phase[slot];
}

__device__ __forceinline__ void finish_phase(RowShared& shared, int p) {
  arrive(shared_address(shared.finished + p % kDescribedPhases));
}

// By the last warp, for the others.
__device__ __forceinline__ BlockShare share_of(const LinearsPhase& phase) {
  const int block = static_cast<int>(blockIdx.x);
  BlockShare share{};
  while (!phase.gated && share.index + 1 < phase.terms &&
         block >= phase.term[share.index + 1].first_block) {
    ++share.index;
  }
  const RowTerm& term = phase.term[share.index];
  const int local = block - term.first_block;
  share.first = 2 * (local * term.pairs_of_block + min(local, term.spare_pairs));
  share.channels = 2 * (term.pairs_of_block + (local < term.spare_pairs ? 1 : 0));
  share.items = tile_of(phase, share.channels + phase.tile_channels - 1) * phase.pieces;
  return share;
}

// A phase's description on its way from the kernel's parameters to shared memory: two words a lane.
struct DescriptionWords {
  uint64_t words[2];

  __device__ __forceinline__ void read(const RowProgramArgs& program, int p) {
    constexpr int kWords = sizeof(RowPhase) / 8;
    static_assert(sizeof(RowPhase) % 8 == 0 && kWords > 32 && kWords <= 64);
    const auto* from = reinterpret_cast<const uint64_t*>(&program.phase[p]);
    const int lane = static_cast<int>(threadIdx.x % 32);
    words[0] = from[lane];
    words[1] = from[min(lane + 32, kWords - 1)];
  }
  __device__ __forceinline__ void write(RowPhase& to) const {
    constexpr int kWords = sizeof(RowPhase) / 8;
    const int lane = static_cast<int>(threadIdx.x % 32);
    reinterpret_cast<uint64_t*>(&to)[lane] = words[0];
    reinterpret_cast<uint64_t*>(&to)[min(lane + 32, kWords - 1)] = words[1];
  }
};

// By the last warp: phase p to where the others read it. `words` has it, and then the next.
__device__ __forceinline__ const RowPhase& describe_phase(const RowProgramArgs& program, int p,
                                                          const StagePlace& place,
                                                          DescriptionWords& words,
                                                          RowShared& shared) {
  const int slot = p % kDescribedPhases;
  if (p >= kDescribedPhases) {
    wait_for_barrier(shared_address(shared.finished + slot), (p / kDescribedPhases - 1) % 2);
  }
  words.write(shared.phase[slot]);
  __syncwarp();
  words.read(program, min(p + 1, program.phases - 1));
  if (threadIdx.x % 32 == 0) {
    if (shared.phase[slot].attends) {
      wait_for_previous();  // which may have written the position
      shared.head[slot] = head_share(shared.phase[slot].attention);
    } else {
      shared.share[slot] = share_of(shared.phase[slot].linears);
      shared.share[slot].place = place;
    }
  }
  __syncwarp();
  arrive(shared_address(shared.described + slot));
  return shared.phase[slot];
}

__device__ __forceinline__ void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Asks a warp's lanes for `bytes` from `from` on to come as near as the L2.
__device__ __forceinline__ void prefetch_lines(const void* from, int64_t bytes) {
  const auto* address = static_cast<const char*>(from);
#pragma unroll 1
  for (int64_t at = 128 * static_cast<int>(threadIdx.x % 32); at < bytes; at += 128 * 32) {
    prefetch_to_l2(address + at);
  }
}

// What a block has of adapters and B for a phase comes to the L2 ahead of it.
__device__ __forceinline__ void prefetch_adapter(const LinearsPhase& phase,
                                                 const BlockShare& share) {
  for (int i = 0; i < (phase.gated ? 2 : 1); ++i) {
    const RowTerm& term = phase.term[share.index + i];
    if (term.rank > 0) {
      prefetch_lines(term.b + static_cast<int64_t>(share.first) * term.rank,
                     int64_t{4} * share.channels * term.rank);
    }
  }
}

// That the row of phase p is there; and whether it is. An exchange, because racecheck takes only
// that for a write that may meet reads.
__device__ __forceinline__ void set_multiplies(RowShared& shared, int p) {
  atomicExch(&shared.multiplies, p);
}
__device__ __forceinline__ bool multiplies(RowShared& shared, int p) {
  int current;
  asm volatile("ld.relaxed.cta.shared.s32 %0, [%1];"
               : "=r"(current)
               : "r"(shared_address(&shared.multiplies))
               : "memory");
  return current >= p;
}

// One lane of a warp that is together. The compiler knows that it is one: it asks for a copy at
// once where it would else go through the lanes one by one.
__device__ __forceinline__ bool is_elected() {
#if __CUDA_ARCH__ >= 900
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
#else
  return threadIdx.x % 32 == 0;
#endif
}

// What the fetching of a phase's pieces needs, in registers.
struct PhaseRows {
  const char *weight, *second;  // the block's first row, of both of a gated pair
  uint32_t stride;              // bytes from row to row in memory
  uint32_t row_bytes;           // and in the ring
  uint32_t tile_channels, channels;
  uint32_t step;  // clocks from row to row at their pace
  int terms;

  __device__ __forceinline__ PhaseRows(const LinearsPhase& phase, const BlockShare& share)
      : stride(2 * phase.in),
        row_bytes(phase.row_bytes),
        tile_channels(phase.tile_channels),
        channels(share.channels),
        step(phase.pace),
        terms(phase.gated ? 2 : 1) {
    const int64_t at = static_cast<int64_t>(share.first) * stride;
    weight = reinterpret_cast<const char*>(phase.term[share.index].weight) + at;
    second = phase.gated ? reinterpret_cast<const char*>(phase.term[1].weight) + at : weight;
  }
};

// A piece of a tile: `rows` of each term, `bytes` of each row from `from` on, or `second`.
struct TilePiece {
  const char *from, *second;
  uint32_t rows, bytes;

  __device__ __forceinline__ TilePiece(const PhaseRows& phase, uint32_t tile, uint32_t piece) {
    const uint32_t first = tile * phase.tile_channels;
    const uint32_t column_bytes = piece * phase.row_bytes;
    const int64_t at = static_cast<int64_t>(first) * phase.stride + column_bytes;
    from = phase.weight + at;
    second = phase.second + at;
    rows = min(phase.tile_channels, phase.channels - first);
    bytes = min(phase.row_bytes, phase.stride - column_bytes);
  }
};

// Asks for COUNT rows, and steps past them.
template <int COUNT>
__device__ __forceinline__ void copy_rows(const PhaseRows& phase, uint32_t bytes, uint32_t full,
                                          const char*& from, uint32_t& to) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    copy_bulk(to + i * phase.row_bytes, from + i * int64_t{phase.stride}, bytes, full);
  }
  from += COUNT * int64_t{phase.stride};
  to += COUNT * phase.row_bytes;
}

// Asks for a piece as fast as it goes. One lane asks for several rows between which it does not
// branch: one by one they would take longer than the memory does.
__device__ __forceinline__ void fetch_at_once(const PhaseRows& phase, const TilePiece& piece,
                                              uint32_t to, uint32_t full) {
  if (is_elected()) {
    const char* from = piece.from;
#pragma unroll 1
    for (int term = 0; term < phase.terms; ++term) {
      uint32_t at = to;
#pragma unroll 1
      for (uint32_t fours = piece.rows / 4; fours > 0; --fours) {
        copy_rows<4>(phase, piece.bytes, full, from, at);
      }
      if (piece.rows % 4 >= 2) {
        copy_rows<2>(phase, piece.bytes, full, from, at);
      }
      if (piece.rows % 2 != 0) {
        copy_rows<1>(phase, piece.bytes, full, from, at);
      }
      from = piece.second;
      to += phase.tile_channels * phase.row_bytes;
    }
  }
  __syncwarp();
}

// Asks for a piece. Before its phase has its row that goes at a pace, a row a lane: the next row of
// weights is due at `due`.
__device__ __forceinline__ void fetch_piece(const PhaseRows& phase, const TilePiece& piece,
                                            uint32_t to, uint32_t full, int p, RowShared& shared,
                                            bool& row_there, uint32_t& due) {
  const auto lane = threadIdx.x % 32;
  const uint32_t rows = phase.terms * piece.rows;
  if (lane == 0) {
    expect_bytes(full, rows * piece.bytes);
  }
  __syncwarp();
  const auto now = [] { return static_cast<uint32_t>(clock()); };
  // Time that a full ring has taken is not made up for.
  due = static_cast<int>(now() - due) > 0 ? now() : due;
  row_there = row_there || __all_sync(~0U, multiplies(shared, p));
  if (row_there) {
    fetch_at_once(phase, piece, to, full);
  } else {
    const bool second = lane >= piece.rows;
    const uint32_t n = second ? lane - piece.rows : lane;
    const char* from = (second ? piece.second : piece.from) + n * int64_t{phase.stride};
    to += (second ? phase.tile_channels + n : n) * phase.row_bytes;
    const uint32_t own = due + lane * phase.step;
    bool waits = lane < rows;
#pragma unroll 1
    while (__any_sync(~0U, waits)) {
      if (waits && (static_cast<int>(now() - own) >= 0 || multiplies(shared, p))) {
        copy_bulk(to, from, piece.bytes, full);
        waits = false;
      }
    }
  }
  due += rows * phase.step;
}

// What the last warp of a block does; attends(phase, share): ahead of a phase of
// attention.
template <class Attends>
__device__ __forceinline__ void fetch_program(const RowProgramArgs& program, uint32_t ring,
                                              RowShared& shared, const Attends& attends) {
  DescriptionWords words;
  words.read(program, 0);
  auto due = static_cast<uint32_t>(clock());
  StagePlace place{};
#pragma unroll 1
  for (int p = 0; p < program.phases; ++p) {
    const RowPhase& described = describe_phase(program, p, place, words, shared);
    if (described.attends) {
      attends(described.attention, shared.head[p % kDescribedPhases]);
      continue;
    }
    const LinearsPhase& phase = described.linears;
    const BlockShare& share = shared.share[p % kDescribedPhases];
    prefetch_adapter(phase, share);
    const PhaseRows rows(phase, share);
    const int pieces = phase.pieces;
    const int items = share.items;
    bool row_there = false;
    uint32_t tile = 0;
    int piece = 0;
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
      const TilePiece next(rows, tile, piece);
      if (place.round > 0) {
        wait_for_barrier(shared_address(shared.empty + place.stage), (place.round - 1) % 2);
        follow_by_copies();
      }
      fetch_piece(rows, next, ring + place.stage * program.stage_bytes,
                  shared_address(shared.full + place.stage), p, shared, row_there, due);
      if (++piece == pieces) {
        piece = 0;
        ++tile;
      }
      place.advance(1, program.stages);
    }
  }
}

}  // namespace wick::cuda
