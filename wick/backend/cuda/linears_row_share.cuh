// Linear layers of one row: what their kernel is told, and which weights a warp multiplies.
#pragma once

#include "wick/backend/cuda/linears_shrink.cuh"
#include "wick/backend/cuda/weight_ring.cuh"

namespace wick::cuda {

constexpr int kRowLinearsThreads = kLinearsThreads + 32;
constexpr int kRowLinearsRegisters = 56;  // of a thread
constexpr int kRowLinearsResident = 4;    // blocks of as many launches on a multiprocessor

// x = rms_norm(sum), sum = a + b.
struct NormView {
  const void *a, *b;  // b: null where sum is a
  const float* weight;
  float eps;
  void* sum;
};

struct RowLinearsArgs {
  LinearsArgs linears;
  ShrinkTasks shrink;
  NormView norm;  // where the kernel is to norm
  int channels;   // of a block
  int split;      // warps that share a channel
  int stages;     // of a ring
  int channel_bytes, stage_bytes;
  // Shared memory begins with the rings; the rest at these bytes.
  int x_at, norm_weight_at, ends_at, low_at, posted_at, parts_at;
  bool copies_x;
  bool gelu;  // of a gated pair
  void* h;
};

// What a warp multiplies: columns [begin, begin + count) of channels first + group, and then every
// `groups`-th, of the block's.
struct RowShare {
  int index;            // of the term
  int first, channels;  // of the block
  int group, groups;
  int part;
  int begin, count;

  // The n-th of the block's channels, as one of the layer's.
  __device__ __forceinline__ int channel(int n) const { return first + n; }
};

__device__ __forceinline__ RowShare share_of(const RowLinearsArgs& args, int index) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const TermView& term = args.linears.term[index];
  const int in = args.linears.in;
  RowShare share;
  share.index = index;
  const int block = static_cast<int>(blockIdx.x) - term.first_block;
  share.first = static_cast<int>(int64_t{block} * term.channels / term.blocks);
  share.channels = static_cast<int>(int64_t{block + 1} * term.channels / term.blocks) - share.first;
  share.groups = kLinearsWarps / args.split;
  share.group = warp / args.split;
  share.part = warp % args.split;
  const int columns = ((in + 255) / 256 + args.split - 1) / args.split * 256;
  share.begin = min(in, share.part * columns);
  share.count = min(in, share.begin + columns) - share.begin;
  return share;
}

// A place in a warp's share, and the stage of the ring that it goes through.
struct RowCursor {
  int n, column, stage;
  uint32_t phase = 0;  // of the stage's barrier

  template <class W>
  __device__ __forceinline__ bool ends(const RowShare& share) const {
    return column + kChunkColumns<W> >= share.count;
  }
  template <class W>
  __device__ __forceinline__ void advance(const RowShare& share, int stages) {
    if (ends<W>(share)) {
      n += share.groups;
      column = 0;
    } else {
      column += kChunkColumns<W>;
    }
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Asks for what is at the cursor: a chunk of each channel.
template <class W, int CHANNELS>
__device__ __forceinline__ void fetch(const RowLinearsArgs& args, const RowShare& share,
                                      const RowCursor& cursor, uint32_t ring, uint32_t barriers) {
  if (cursor.n < share.channels) {
    const uint32_t to = ring + cursor.stage * args.stage_bytes;
    const uint32_t barrier = barriers + cursor.stage * 8;
    const int left = max(0, min(share.count - cursor.column, kChunkColumns<W>));
    const uint32_t bytes = left * static_cast<int>(sizeof(W));
    const int64_t at = static_cast<int64_t>(share.channel(cursor.n)) * args.linears.in +
                       share.begin + cursor.column;
    const bool asks = (threadIdx.x & 31) == 0;
    if (kBulkCopies && asks) {
      expect_bytes(barrier, CHANNELS * bytes);
    }
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const W* from = static_cast<const W*>(args.linears.term[share.index + i].weight) + at;
      if constexpr (!kBulkCopies) {
        fetch_chunk(from, left, to + i * args.channel_bytes);
      } else if (asks && bytes > 0) {
        copy_bulk(to + i * args.channel_bytes, from, bytes, barrier);
      }
    }
  }
  if constexpr (!kBulkCopies) {
    commit_copies();
  }
}

}  // namespace wick::cuda
