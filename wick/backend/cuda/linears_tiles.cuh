// Linear layers of up to 64 rows of bf16 with their adapters in one launch: bound by reading the
// weights once, and by latency.
//
// A cluster takes 32 channels of all rows; its blocks share K, and so do the warps of a block.
// A lane copies the 16 bytes of both operands that it will multiply, and no other, into a ring of
// its own in shared memory, so that much is on its way and nobody waits for others. (The order
// along K is free as long as both operands agree: see lora_tiles.cuh.) The warps' sums are added up
// in shared memory, those of the blocks where they are stored: each block has the same share of the
// tile.
//
// Where all rows have the same adapter, of up to 16 ranks, its A is 8 or 16 more channels of every
// cluster: s comes out of the same pass over x. A is f32, so it is multiplied as the sum of two
// bf16 numbers. Weights and A are asked for before x is there.
//
// Other adapters' shrink runs before, in a kernel of its own that lets this one start early, but
// not before x is there: s is not needed before the sums are.
#pragma once

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/linears_kernel.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kTileDepth = 32;  // of K, in a step of a warp
constexpr int kTileChannels = 32;

// A step of a warp is ROWS16 x 4 x 2 matrix products of 16 x 8 x 16. With 32 rows a multiprocessor
// takes two blocks, with 64 one: two would share what others have for themselves. RANKS8: eights of
// ranks of A; 0: s is there.
template <int ROWS16, int RANKS8>
struct TileShape {
  static constexpr int kRows = 16 * ROWS16;
  static constexpr int kChannels = kTileChannels;
  static constexpr int kRanks8 = RANKS8;
  static constexpr int kColumns = kChannels + 8 * RANKS8;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRingBytes = ROWS16 * 48 * 1024;
  static constexpr int kResident = ROWS16 <= 2 ? 2 : 1;
  // Of 16 bytes, by each lane in a step: rows 8 i + g of x, then of the weight, then of A (two
  // loads a row); values 8 q to 8 q + 7.
  static constexpr int kLoadsX = 2 * ROWS16;
  static constexpr int kLoadsA = kLoadsX + kChannels / 8;  // the first of A
  static constexpr int kLoads = kLoadsA + 2 * RANKS8;
  static constexpr int kStages = kRingBytes / (kLoads * 16 * kThreads);
  // Of a row of sums: 8 or 24 banks on, so that none is met twice.
  static constexpr int kStride = RANKS8 <= 1 ? 40 : 56;
  static constexpr int kRowQuads = kColumns / 4;
  static constexpr int kQuads = kRows * kRowQuads;
  static constexpr int kSumBytes = 4 * kWarps * kRows * kStride;
  static_assert(kSumBytes <= kRingBytes && RANKS8 <= 2);
  static constexpr size_t kSharedBytes = kRingBytes + size_t{16} * kQuads;

  using Sums = float[ROWS16][kColumns / 8][4];  // as mma holds them
};

// A lane's share of an operand: rows 8 i + g below `count`, values 8 q to 8 q + 7 of each step.
template <class T>
struct TileOperand {
  const T* first;
  int count;
};

template <class T>
__device__ __forceinline__ TileOperand<T> operand_of(const T* values, int count, int in) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  return {values + lane / 4 * static_cast<int64_t>(in) + 8 * (lane % 4), count - lane / 4};
}

struct TileOperands {
  TileOperand<__nv_bfloat16> x, w;
  TileOperand<float> a;
  int in;
};

__device__ __forceinline__ bool inside(const TileOperands& operands, int k) {
  return k + 8 * static_cast<int>(threadIdx.x & 3) < operands.in;
}

template <class Tile>
__device__ __forceinline__ void copy_rows(const TileOperands& operands, int k, uint32_t to) {
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX; ++i) {
    const bool valid = inside(operands, k) && 8 * i < operands.x.count;
    const __nv_bfloat16* row = operands.x.first + int64_t{8} * i * operands.in;
    copy16_async(to + i * 16 * Tile::kThreads, valid ? row + k : operands.x.first, valid);
  }
}

// Of the weight and of A.
template <class Tile>
__device__ __forceinline__ void copy_weights(const TileOperands& operands, int k, uint32_t to) {
#pragma unroll
  for (int i = 0; i < Tile::kChannels / 8; ++i) {
    const bool valid = inside(operands, k) && 8 * i < operands.w.count;
    const __nv_bfloat16* row = operands.w.first + int64_t{8} * i * operands.in;
    copy16_async(to + (Tile::kLoadsX + i) * 16 * Tile::kThreads, valid ? row + k : operands.w.first,
                 valid);
  }
#pragma unroll
  for (int i = 0; i < 2 * Tile::kRanks8; ++i) {
    const bool valid = inside(operands, k) && 8 * (i / 2) < operands.a.count;
    const float* row = operands.a.first + int64_t{8} * (i / 2) * operands.in + 4 * (i % 2);
    const void* elsewhere = operands.w.first;
    copy16_async(to + (Tile::kLoadsA + i) * 16 * Tile::kThreads, valid ? row + k : elsewhere,
                 valid);
  }
}

__device__ __forceinline__ uint4 load_shared16(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}

// sums[i] += 16 rows of x times the eight rows that `w` has of the other operand.
template <class Tile>
__device__ __forceinline__ void multiply_eight(const uint4 (&x)[Tile::kLoadsX], const uint4& w,
                                               int j, typename Tile::Sums& sums) {
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX / 2; ++i) {
    const uint4& upper = x[2 * i];
    const uint4& lower = x[2 * i + 1];
    multiply_16x8x16(upper.x, lower.x, upper.y, lower.y, w.x, w.y, sums[i][j]);
    multiply_16x8x16(upper.z, lower.z, upper.w, lower.w, w.z, w.w, sums[i][j]);
  }
}

// Two floats as bf16, and what that leaves of them.
__device__ __forceinline__ uint32_t split_pair(float a, float b, uint32_t& rest) {
  const uint32_t rounded = pack_bf16(a, b);
  rest = pack_bf16(a - low_bf16(rounded), b - high_bf16(rounded));
  return rounded;
}

__device__ __forceinline__ uint4 split_eight(const uint4& first, const uint4& second, uint4& rest) {
  const auto value = [](uint32_t word) { return __uint_as_float(word); };
  return {split_pair(value(first.x), value(first.y), rest.x),
          split_pair(value(first.z), value(first.w), rest.y),
          split_pair(value(second.x), value(second.y), rest.z),
          split_pair(value(second.z), value(second.w), rest.w)};
}

template <class Tile>
__device__ __forceinline__ void multiply_step(uint32_t from, typename Tile::Sums& sums) {
  constexpr int kChannels8 = Tile::kChannels / 8;
  constexpr int kSlot = 16 * Tile::kThreads;
  uint4 x[Tile::kLoadsX];
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX; ++i) {
    x[i] = load_shared16(from + i * kSlot);
  }
#pragma unroll
  for (int j = 0; j < kChannels8; ++j) {
    multiply_eight<Tile>(x, load_shared16(from + (Tile::kLoadsX + j) * kSlot), j, sums);
  }
#pragma unroll
  for (int j = 0; j < Tile::kRanks8; ++j) {
    const uint32_t at = from + (Tile::kLoadsA + 2 * j) * kSlot;
    uint4 rest;
    const uint4 a = split_eight(load_shared16(at), load_shared16(at + kSlot), rest);
    multiply_eight<Tile>(x, a, kChannels8 + j, sums);
    multiply_eight<Tile>(x, rest, kChannels8 + j, sums);
  }
}

// A warp's steps begin, begin + kWarps, ... below `end`. Where s is made here, x may be what the
// kernel before writes.
template <class Tile>
__device__ __forceinline__ void multiply_range(const TileOperands& operands, int begin, int end,
                                               uint32_t ring, typename Tile::Sums& sums) {
  constexpr int kStages = Tile::kStages;
  constexpr int kStageBytes = Tile::kLoads * 16 * Tile::kThreads;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (const int step = begin + i * Tile::kWarps; step < end) {
      copy_weights<Tile>(operands, step * kTileDepth, ring + i * kStageBytes);
    }
  }
  if constexpr (Tile::kRanks8 > 0) {
    wait_for_previous();
    let_next_start();
  }
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (const int step = begin + i * Tile::kWarps; step < end) {
      copy_rows<Tile>(operands, step * kTileDepth, ring + i * kStageBytes);
    }
    commit_copies();
  }
  int stage = 0;
  for (int step = begin; step < end; step += Tile::kWarps) {
    wait_for_copies<kStages - 1>();
    const uint32_t at = ring + stage * kStageBytes;
    multiply_step<Tile>(at, sums);
    if (const int next = step + kStages * Tile::kWarps; next < end) {
      copy_weights<Tile>(operands, next * kTileDepth, at);
      copy_rows<Tile>(operands, next * kTileDepth, at);
    }
    commit_copies();
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
}

// To rows[row][channel, then rank] of this warp's part of K.
template <class Tile>
__device__ __forceinline__ void store_sums(const typename Tile::Sums& sums, float* rows) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int i = 0; i < Tile::kRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumns / 8; ++j) {
      float* to = rows + (16 * i + g) * Tile::kStride + 8 * j + 2 * q;
      *reinterpret_cast<float2*>(to) = {sums[i][j][0], sums[i][j][1]};
      *reinterpret_cast<float2*>(to + 8 * Tile::kStride) = {sums[i][j][2], sums[i][j][3]};
    }
  }
}

__device__ __forceinline__ void add_to(float4& sum, float4 value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}

// Four channels of row t from n on, and what changes them beside s: asked for before s is there.
struct QuadChange {
  static constexpr int kQuads = 4;  // of ranks
  const AdapterView* adapter;       // null: none
  bool vector;                      // ranks in aligned fours
  float4 b[4][kQuads];
  float bias[4];
};

__device__ __forceinline__ const float* b_row(const TermView& term, const AdapterView& adapter,
                                              int n) {
  return adapter.b + static_cast<int64_t>(min(n, term.channels - 1)) * adapter.rank;
}

__device__ __forceinline__ void fetch_change(const LinearsArgs& args, const TermView& term, int t,
                                             int n, QuadChange& change) {
  change.adapter = term.adapters > 0 ? adapter_of(args, term, t) : nullptr;
  if (change.adapter != nullptr) {
    const AdapterView& adapter = *change.adapter;
    change.vector = adapter.rank % 4 == 0 && term.s_stride % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(adapter.b) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(term.s) % 8 == 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int quad = 0; quad < QuadChange::kQuads; ++quad) {
        if (change.vector && 4 * quad < adapter.rank) {
          change.b[i][quad] = reinterpret_cast<const float4*>(b_row(term, adapter, n + i))[quad];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    change.bias[i] = term.bias == nullptr
                         ? 0.0F
                         : load_as(term.bias, min(n + i, term.channels - 1), term.bias_type);
  }
}

// `s`: row t of the ranks, f32 or bf16, in aligned fours if change.vector. Beyond the last channel
// anything.
template <class S>
__device__ __forceinline__ float4 finish_change(const TermView& term, const S* s, int n,
                                                const QuadChange& change) {
  float sums[4] = {};
  if (change.adapter != nullptr) {
    const AdapterView& adapter = *change.adapter;
    int r = change.vector ? adapter.rank : 0;
#pragma unroll
    for (int quad = 0; quad < QuadChange::kQuads; ++quad) {
      if (4 * quad < r) {
        const float4 low = load4(s + 4 * quad);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[i] = dot4(low, change.b[i][quad], sums[i]);
        }
      }
    }
    r = min(r, 4 * QuadChange::kQuads);
    for (; r < adapter.rank; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] = fmaf(to_float(s[r]), b_row(term, adapter, n + i)[r], sums[i]);
      }
    }
  }
  const float scaling = change.adapter != nullptr ? change.adapter->scaling : 0.0F;
  return {fmaf(scaling, sums[0], change.bias[0]), fmaf(scaling, sums[1], change.bias[1]),
          fmaf(scaling, sums[2], change.bias[2]), fmaf(scaling, sums[3], change.bias[3])};
}

__device__ __forceinline__ void store_quad(float4 value, const TermView& term, int t, int n) {
  const int64_t at = static_cast<int64_t>(t) * term.channels + n;
  const float values[4] = {value.x, value.y, value.z, value.w};
  if (term.channels % 4 == 0 && term.y_type == DType::bf16 &&
      reinterpret_cast<uintptr_t>(term.y) % 8 == 0) {
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(term.y) + at) = {
        pack_bf16(value.x, value.y), pack_bf16(value.z, value.w)};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (n + i < term.channels) {
      store_as(values[i], at + i, term.y_type, term.y);
    }
  }
}

template <class Tile>
__device__ __forceinline__ TileOperands operands_of(const LinearsArgs& args, const TermView& term,
                                                    int n0) {
  const auto* w =
      static_cast<const __nv_bfloat16*>(term.weight) + static_cast<int64_t>(n0) * args.in;
  TileOperands operands{operand_of(static_cast<const __nv_bfloat16*>(args.x), args.rows, args.in),
                        operand_of(w, term.channels - n0, args.in),
                        {},
                        args.in};
  if (Tile::kRanks8 > 0 && term.adapters > 0) {
    const AdapterView& adapter = args.adapter[term.first_adapter];
    operands.a = operand_of(adapter.a, adapter.rank, args.in);
  }
  return operands;
}

// Brings the blocks' sums of ranks together, for the rows of this block: low[row][rank], and s.
template <class Tile>
__device__ __forceinline__ void add_ranks(const TermView& term, const float4* gathered,
                                          int first_row, int rows, int rank_count, bool writes,
                                          float* low) {
  constexpr int kQuads = 2 * Tile::kRanks8;
  const int blocks = cluster_blocks();
  const int share = Tile::kQuads / blocks;
  const int own_rows = Tile::kRows / blocks;
  for (int i = threadIdx.x; i < own_rows * kQuads; i += Tile::kThreads) {
    const int row = i / kQuads;
    const int quad = i % kQuads;
    const float4* from = gathered + row * Tile::kRowQuads + Tile::kChannels / 4 + quad;
    float4 sum = *from;
    for (int part = 1; part < blocks; ++part) {
      add_to(sum, from[part * share]);
    }
    reinterpret_cast<float4*>(low)[i] = sum;
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (writes && first_row + row < rows && 4 * quad + r < rank_count) {
        static_cast<__nv_bfloat16*>(
            term.s)[static_cast<int64_t>(first_row + row) * term.s_stride + 4 * quad + r] =
            from_float<__nv_bfloat16>(values[r]);
      }
    }
  }
  __syncthreads();
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    tile_linears(const __grid_constant__ LinearsArgs args) {
  extern __shared__ float4 shared[];
  float* sums_of_warps = reinterpret_cast<float*>(shared);        // in the place of the rings
  float4* gathered = shared + Tile::kRingBytes / sizeof(float4);  // by block, quad of this block
  cluster_arrive_relaxed();                                       // this block has begun
  const int blocks = cluster_blocks();
  const int rank = cluster_rank();
  const int block = static_cast<int>(blockIdx.x);
  int index = 0;
  while (index + 1 < args.terms && block >= args.term[index + 1].first_block) {
    ++index;
  }
  const TermView& term = args.term[index];
  const int n0 = (block - term.first_block) / blocks * Tile::kChannels;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const TileOperands operands = operands_of<Tile>(args, term, n0);
  const int steps = (args.in + kTileDepth - 1) / kTileDepth;
  const int of_block = (steps + blocks - 1) / blocks;
  const int begin = min(steps, rank * of_block);
  const int end = min(steps, begin + of_block);
  typename Tile::Sums sums = {};
  multiply_range<Tile>(operands, begin + warp, end, shared_address(shared + threadIdx.x), sums);
  __syncthreads();
  const int parts = max(1, min(Tile::kWarps, end - begin));  // warps that had a step
  if (warp < parts) {
    store_sums<Tile>(sums, sums_of_warps + warp * Tile::kRows * Tile::kStride);
  }
  __syncthreads();
  cluster_wait();  // the other blocks have begun

  const int share = Tile::kQuads / blocks;
  for (int i = threadIdx.x; i < Tile::kQuads; i += Tile::kThreads) {
    const float* from =
        sums_of_warps + i / Tile::kRowQuads * Tile::kStride + i % Tile::kRowQuads * 4;
    float4 of_warp[Tile::kWarps];
#pragma unroll
    for (int part = 0; part < Tile::kWarps; ++part) {
      of_warp[part] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (part < parts) {
        of_warp[part] = *reinterpret_cast<const float4*>(from + part * Tile::kRows * Tile::kStride);
      }
    }
    float4 sum = of_warp[0];
#pragma unroll
    for (int part = 1; part < Tile::kWarps; ++part) {
      add_to(sum, of_warp[part]);
    }
    store_to_peer(sum, gathered + rank * share + i % share, i / share);
  }
  cluster_arrive();

  // The threads of a warp go on together.
  constexpr int kChannelQuads = Tile::kChannels / 4;
  const int own_rows = Tile::kRows / blocks;
  float* low = sums_of_warps;  // all blocks have added those up when they arrived
  bool waited = false;
  for (int first = 0; first < own_rows * kChannelQuads; first += Tile::kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int row = i / kChannelQuads;
    const int quad = i % kChannelQuads;
    const int t = rank * own_rows + row;
    const int n = n0 + 4 * quad;
    const bool wanted = row < own_rows && t < args.rows && n < term.channels;
    QuadChange change;
    if (wanted) {
      fetch_change(args, term, t, n, change);
    }
    if (!waited) {
      waited = true;
      if constexpr (Tile::kRanks8 == 0) {
        wait_for_previous();  // and its s
        let_next_start();
      }
      cluster_wait();  // all sums are here
      if constexpr (Tile::kRanks8 > 0) {
        const int ranks = term.adapters > 0 ? args.adapter[term.first_adapter].rank : 0;
        add_ranks<Tile>(term, gathered, rank * own_rows, args.rows, ranks, n0 == 0, low);
      }
    }
    if (wanted) {
      float4 value;
      if constexpr (Tile::kRanks8 > 0) {
        value = finish_change(term, low + row * 8 * Tile::kRanks8, n, change);
      } else {
        const auto* s = static_cast<const __nv_bfloat16*>(term.s);
        value = finish_change(term, s + static_cast<int64_t>(t) * term.s_stride, n, change);
      }
      const float4* from = gathered + row * Tile::kRowQuads + quad;
      float4 sum = *from;
      for (int part = 1; part < blocks; ++part) {
        add_to(sum, from[part * share]);
      }
      add_to(value, sum);
      store_quad(value, term, t, n);
    }
  }
}

}  // namespace wick::cuda
