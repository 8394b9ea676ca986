// Linear layers of one row by tiles: the ring in shared memory that their weights come through.
//
// The last warp of a block asks for them, a barrier a stage counts the bytes that came, another the
// warps that have read (compute capability 9.0).
#pragma once

#include "wick/backend/cuda/linears_row_share.cuh"

namespace wick::cuda {

constexpr int kTileRows = 16;
constexpr int kRunColumns = 32;  // that a warp multiplies at a time
constexpr int kMostTileStages = 8;
constexpr int kRunBytes = 2 * kRunColumns;
constexpr int kStrideOfRuns = kLinearsWarps * kRunBytes;  // from a warp's run to its next

template <int CHANNELS>
constexpr int kTileChannels = kTileRows / CHANNELS;

// All warps of a block but the last, and how they wait for each other.
__device__ __forceinline__ int row_workers() {
  return static_cast<int>(blockDim.x) - 32;
}
__device__ __forceinline__ void meet_workers() {
  asm volatile("bar.sync 1, %0;" ::"r"(row_workers()) : "memory");
}

// Keeps a number in its register: the compiler does not work it out again in each round of a loop.
__device__ __forceinline__ void hold(uint32_t& value) {
  asm volatile("" : "+r"(value));
}

struct TileRing {
  uint64_t full[kMostTileStages];
  uint64_t empty[kMostTileStages];
  int hurries;  // the row is there; read and written by atomics alone
};

__device__ __forceinline__ void start_ring(TileRing& ring, int stages) {
  const int lane = threadIdx.x & 31;
  if (lane < stages) {
    start_barrier_of(shared_address(ring.full + lane), 1);
    start_barrier_of(shared_address(ring.empty + lane), kLinearsWarps);
  }
  if (lane == 0) {
    ring.hurries = 0;
  }
  show_barriers_to_copies();
}

// When the next row may be asked for.
struct Pace {
  uint32_t due;
  uint32_t step;  // clocks a row; 0: at once

  // False once there is no reason to wait any more.
  __device__ __forceinline__ bool wait(TileRing& ring) {
    while (static_cast<int>(static_cast<uint32_t>(clock()) - due) < 0) {
      if (atomicOr_block(&ring.hurries, 0) != 0) {
        return false;
      }
      __nanosleep(20);
    }
    due += step;
    return true;
  }
};

// A piece of a tile: `rows` of each term, `bytes` of each row.
template <int CHANNELS>
struct TilePiece {
  const __nv_bfloat16* weight[CHANNELS];
  int rows;
  uint32_t bytes;
};

template <int CHANNELS>
__device__ __forceinline__ TilePiece<CHANNELS> tile_piece(const RowLinearsArgs& args,
                                                          const RowShare& share, int tile,
                                                          int piece) {
  const int first = tile * args.tile_channels;
  const int column = piece * args.columns;
  TilePiece<CHANNELS> of;
  of.rows = min(args.tile_channels, share.channels - first);
  of.bytes = 2 * min(args.columns, args.linears.in - column);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    of.weight[i] = static_cast<const __nv_bfloat16*>(args.linears.term[share.index + i].weight) +
                   static_cast<int64_t>(share.channel(first)) * args.linears.in + column;
  }
  return of;
}

// Asks for the piece by a lane, row by row, at a pace; false, and the rest at once, where that
// ends.
template <int CHANNELS>
__device__ __forceinline__ bool fetch_at_pace(const RowLinearsArgs& args,
                                              const TilePiece<CHANNELS>& piece, uint32_t to,
                                              uint32_t full, TileRing& ring, Pace& pace) {
  bool waits = true;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const __nv_bfloat16* from = piece.weight[i];
    uint32_t row = to + kTileChannels<CHANNELS> * i * args.row_bytes;
#pragma unroll 1
    for (int n = 0; n < piece.rows; ++n) {
      waits = waits && pace.wait(ring);
      copy_bulk(row, from, piece.bytes, full);
      from += args.linears.in;
      row += args.row_bytes;
    }
  }
  return waits;
}

// The same by a warp, a copy a lane. Whole rows follow each other in memory and here.
template <int CHANNELS>
__device__ __forceinline__ void fetch_at_once(const RowLinearsArgs& args,
                                              const TilePiece<CHANNELS>& piece, uint32_t to,
                                              uint32_t full) {
  const int lane = threadIdx.x & 31;
  const bool whole = args.pieces == 1;
  const int copies = whole ? 1 : piece.rows;
  if (lane < CHANNELS * copies) {
    const int i = lane / copies;
    const int n = lane - i * copies;
    const __nv_bfloat16* weight =
        CHANNELS == 2 && i == 1 ? piece.weight[CHANNELS - 1] : piece.weight[0];
    copy_bulk(to + (kTileChannels<CHANNELS> * i + n) * args.row_bytes,
              weight + static_cast<int64_t>(n) * args.linears.in,
              whole ? piece.rows * piece.bytes : piece.bytes, full);
  }
}

// What the last warp of a block does: asks for the weights, until the row is there at a rate that
// leaves the launches before in peace.
template <int CHANNELS>
__device__ __forceinline__ void fetch_tiles(const RowLinearsArgs& args, int index,
                                            unsigned char* shared, TileRing& ring) {
  const RowShare share = share_of(args, index);
  const int lane = threadIdx.x & 31;
  const int tiles = (share.channels + args.tile_channels - 1) / args.tile_channels;
  const int total = tiles * args.pieces;
  const uint32_t full = shared_address(ring.full);
  const uint32_t empty = shared_address(ring.empty);
  Pace pace{static_cast<uint32_t>(clock()), static_cast<uint32_t>(args.pace)};
  bool waits = args.pace > 0;
  int tile = 0;
  int piece = 0;
  int stage = 0;
  uint32_t phase = 1;
#pragma unroll 1
  for (int item = 0; item < total; ++item) {
    if (item >= args.stages) {
      wait_for_barrier(empty + 8 * stage, phase);
    }
    const TilePiece<CHANNELS> of = tile_piece<CHANNELS>(args, share, tile, piece);
    const uint32_t barrier = full + 8 * stage;
    const uint32_t to = shared_address(shared) + stage * args.stage_bytes;
    if (lane == 0) {
      expect_bytes(barrier, CHANNELS * of.rows * of.bytes);
    }
    __syncwarp();
    if (waits) {
      if (lane == 0) {
        waits = fetch_at_pace<CHANNELS>(args, of, to, barrier, ring, pace);
      }
      waits = __shfl_sync(~0U, static_cast<int>(waits), 0) != 0;
    } else {
      fetch_at_once<CHANNELS>(args, of, to, barrier);
      __syncwarp();
    }
    if (++piece == args.pieces) {
      piece = 0;
      ++tile;
    }
    if (++stage == args.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

}  // namespace wick::cuda
