// Programs of one row: operations on a single token's row of bf16 that one launch does one after
// the other (compute capability 9.0). Here: what the kernel is told.
//
// A token's operations are short and each needs all of the one before. A launch for each would pay
// for its start, for the wait at its end, and for a memory that idles meanwhile. So one block a
// multiprocessor stays for all of them: a warp of it goes ahead through the operations and asks for
// the weights that the block will multiply (row_ring.cuh), the others hand rows from operation to
// operation through memory in words that say themselves whether they have come (row_exchange.cuh).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/core/tensor.h"

namespace wick::cuda {

// A block's warps: some multiply, in two groups that take turns; one has the low-rank half, one the
// weights.
constexpr int kRowGroups = 2;
constexpr int kGroupWarps = 8;
constexpr int kProgramWarps = kRowGroups * kGroupWarps;
constexpr int kWorkers = 32 * kProgramWarps;
constexpr int kShrinkWarp = kProgramWarps;
constexpr int kFetchWarp = kProgramWarps + 1;
constexpr int kProgramThreads = kWorkers + 128;  // with two idle warps

constexpr int kRowTerms = 3;
constexpr int kTileRows = 16;
constexpr int kRunColumns = 32;  // that a warp multiplies at a time
constexpr int kRunBytes = 2 * kRunColumns;
constexpr int kStrideOfRuns = kGroupWarps * kRunBytes;  // from a warp's run to its next
// Four threads end a channel together: thread t of them has ranks 4 t to 4 t + 3 of every 16.
constexpr int kEndThreads = 4;
constexpr int kEndRanks = 4;
constexpr int kEndRows = kWorkers / kEndThreads;  // at a time

constexpr int kMostRowStages = 16;  // of the ring of weights

// A linear layer, its adapter, and the blocks that have its channels.
struct RowTerm {
  const __nv_bfloat16* weight;
  const void* bias;  // null: none
  void* y;           // null: nobody reads it from memory
  __nv_bfloat16* s;  // null, too
  const float *a, *b;
  float scaling;
  int rank;              // 0: no adapter
  int channels, before;  // those of the terms before it
  int first_block, blocks;
  int pairs_of_block, spare_pairs;  // the first `spare_pairs` blocks have one more
  int first_task;                   // of the shrink
  DType bias_type, y_type;
};

// How a phase of linear layers uses its part of shared memory: bytes from its begin.
struct RowWork {
  int x, ends, low, posted, parts, end;
};

// What ends a channel, a thread's quarter of it: ranks of B, where rows of it are whole fours, and
// the bias; of a gated pair both terms'.
struct OutputEnd {
  float4 b[2];
  float bias[2];
  bool far[2];  // more is to be read at the end
};

// Linear layers of x, or of its norm; or h = act(g) u of two.
struct LinearsPhase {
  RowTerm term[kRowTerms];
  int terms;
  bool gated, gelu;
  bool norms;
  bool keeps_sum;              // the row that is normed is in shared memory from an earlier phase
  bool adds;                   // `b` is added to it
  const __nv_bfloat16 *a, *b;  // null: posted by the phase before. Without a norm x is b
  const float* norm_weight;
  float eps, per_column;  // 1 / in
  __nv_bfloat16* sum;     // null: nobody reads it from memory
  __nv_bfloat16* h;
  int in;
  int channels;         // of a block at most
  int tile_channels;    // of a term
  int tile_reciprocal;  // times 2^16, rounded up
  int columns, pieces;  // of a piece of a tile; pieces of a tile
  int row_bytes;        // from row to row in shared memory
  int split;            // warps that share a channel
  int shrink_pieces;    // that a row of A is cut into
  int tasks;            // of the shrink
  int width;            // ranks of a term in shared memory: whole sixteens
  bool keeps_ends;      // of channels after the first kEndRows there are some in shared memory
  int pace;             // clocks from row to row of weights that are not urgent
  RowWork work;
};

// Attention of the token, whose key and value go to the cache.
struct AttentionPhase {
  AttentionCall call;
  const int* positions;
  const float* table;  // [P,R]
  int R;
  const __nv_bfloat16 *q, *k, *v;  // null: posted by the phase before
  __nv_bfloat16 *k_cache, *v_cache;
  __nv_bfloat16* o;  // null: nobody reads it from memory
  int most_blocks;   // for a key head
  int writers;       // warps of a block that take keys
};

struct RowPhase {
  bool attends;
  bool posts;  // its result is the next phase's input
  union {
    LinearsPhase linears;
    AttentionPhase attention;
  };
};

// Words of a value and the tag of the phase that it belongs to; see row_exchange.cuh.
struct RowExchange {
  static constexpr int kTurns = 3;
  static constexpr int kRowWords = 32768;   // pairs of bf16
  static constexpr int kSumWords = 8192;    // of shrinks
  static constexpr int kPartWords = 65536;  // of attention
  struct State {
    uint32_t tag;  // of the first phase of the program that runs or comes next; at first not 0
    int left;      // blocks of it that are done; 0 between programs
  };
  uint64_t* rows = nullptr;   // [kTurns, kRowWords]: of phases by turns
  uint64_t* sums = nullptr;   // [kTurns, kSumWords]
  uint64_t* parts = nullptr;  // [kPartWords]
  State* state = nullptr;
};

// n / phase.tile_channels, for n up to kMostBlockChannels.
constexpr int kMostBlockChannels = 4096;
__device__ __forceinline__ int tile_of(const LinearsPhase& phase, int n) {
  return n * phase.tile_reciprocal >> 16;
}

constexpr int kMostRowPhases = 60;

struct RowProgramArgs {
  RowExchange exchange;
  int phases;
  int stages, stage_bytes;  // of the ring, with which shared memory begins
  int sum_at, work_at;      // bytes of shared memory: the row that is normed; a phase's own
  RowPhase phase[kMostRowPhases];
};
static_assert(sizeof(RowProgramArgs) <= 32764);  // kernel parameters of compute capability 7.0 on

}  // namespace wick::cuda
