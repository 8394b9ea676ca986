// Linear layers of up to 64 rows of bf16, with the expand of their adapters, in one launch: bound
// by reading the weights once, and by latency.
//
// A cluster takes 32 channels of all rows; its blocks share K, and so do the warps of a block.
// A lane copies the 16 bytes of both operands that it will multiply, and no other, into a ring of
// its own in shared memory, so that much is on its way and nobody waits for others. (The order
// along K is free as long as both operands agree: see lora_tiles.cuh.) The warps' sums are added up
// in shared memory, those of the blocks where they are stored: each block has the same share of the
// tile.
//
// The shrink of the adapters runs before, in a kernel of its own that lets this one start early,
// but not before x is there: s is not needed before the sums are.
#pragma once

#include "wick/backend/cuda/cluster.cuh"
#include "wick/backend/cuda/linears_kernel.cuh"
#include "wick/backend/cuda/tensor_core.cuh"

namespace wick::cuda {

constexpr int kTileDepth = 32;  // of K, in a step of a warp
constexpr int kTileChannels = 32;

// A step of a warp is ROWS16 x 4 x 2 matrix products of 16 x 8 x 16. With 32 rows a multiprocessor
// takes two blocks, with 64 one: two would share what others have for themselves.
template <int ROWS16>
struct TileShape {
  static constexpr int kRows = 16 * ROWS16;
  static constexpr int kChannels = kTileChannels;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRingBytes = ROWS16 * 48 * 1024;
  static constexpr int kResident = ROWS16 <= 2 ? 2 : 1;
  // Of 16 bytes, by each lane in a step: rows 8 i + g of x, then of the weight; values 8 q to
  // 8 q + 7.
  static constexpr int kLoadsX = 2 * ROWS16;
  static constexpr int kLoads = kLoadsX + kChannels / 8;
  static constexpr int kStages = kRingBytes / (kLoads * 16 * kThreads);
  static constexpr int kStride = kChannels + 8;  // of a row of sums: no bank is met twice
  static constexpr int kRowQuads = kChannels / 4;
  static constexpr int kQuads = kRows * kRowQuads;
  static constexpr int kSumBytes = 4 * kWarps * kRows * kStride;
  static_assert(kSumBytes <= kRingBytes);
  static constexpr size_t kSharedBytes = kRingBytes + size_t{16} * kQuads;

  using Sums = float[ROWS16][kChannels / 8][4];  // as mma holds them
};

// A lane's share of an operand: rows 8 i + g below `count`, values 8 q to 8 q + 7 of each step.
struct TileOperand {
  const __nv_bfloat16* first;
  int count;
};

__device__ __forceinline__ TileOperand operand_of(const void* values, int count, int in) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  return {static_cast<const __nv_bfloat16*>(values) + lane / 4 * static_cast<int64_t>(in) +
              8 * (lane % 4),
          count - lane / 4};
}

template <class Tile>
__device__ __forceinline__ void copy_step(const TileOperand& x, const TileOperand& w, int k, int in,
                                          uint32_t to) {
  const bool inside = k + 8 * static_cast<int>(threadIdx.x & 3) < in;
  const int64_t eight_rows = int64_t{8} * in;
#pragma unroll
  for (int i = 0; i < Tile::kLoads; ++i) {
    const bool of_x = i < Tile::kLoadsX;
    const TileOperand& operand = of_x ? x : w;
    const int row = of_x ? i : i - Tile::kLoadsX;
    const bool valid = inside && 8 * row < operand.count;
    copy16_async(to + i * 16 * Tile::kThreads,
                 valid ? operand.first + row * eight_rows + k : operand.first, valid);
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

template <class Tile>
__device__ __forceinline__ void multiply_step(uint32_t from, typename Tile::Sums& sums) {
  constexpr int kRows16 = Tile::kLoadsX / 2;
  constexpr int kChannels8 = Tile::kLoads - Tile::kLoadsX;
  constexpr int kSlot = 16 * Tile::kThreads;
  uint4 x[Tile::kLoadsX];
#pragma unroll
  for (int i = 0; i < Tile::kLoadsX; ++i) {
    x[i] = load_shared16(from + i * kSlot);
  }
#pragma unroll
  for (int j = 0; j < kChannels8; ++j) {
    const uint4 w = load_shared16(from + (Tile::kLoadsX + j) * kSlot);
#pragma unroll
    for (int i = 0; i < kRows16; ++i) {
      const uint4& upper = x[2 * i];
      const uint4& lower = x[2 * i + 1];
      multiply_16x8x16(upper.x, lower.x, upper.y, lower.y, w.x, w.y, sums[i][j]);
      multiply_16x8x16(upper.z, lower.z, upper.w, lower.w, w.z, w.w, sums[i][j]);
    }
  }
}

// A warp's steps begin, begin + kWarps, ... below `end`.
template <class Tile>
__device__ __forceinline__ void multiply_range(const TileOperand& x, const TileOperand& w, int in,
                                               int begin, int end, uint32_t ring,
                                               typename Tile::Sums& sums) {
  constexpr int kStages = Tile::kStages;
  constexpr int kStageBytes = Tile::kLoads * 16 * Tile::kThreads;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (const int step = begin + i * Tile::kWarps; step < end) {
      copy_step<Tile>(x, w, step * kTileDepth, in, ring + i * kStageBytes);
    }
    commit_copies();
  }
  int stage = 0;
  for (int step = begin; step < end; step += Tile::kWarps) {
    wait_for_copies<kStages - 1>();
    const uint32_t at = ring + stage * kStageBytes;
    multiply_step<Tile>(at, sums);
    if (const int next = step + kStages * Tile::kWarps; next < end) {
      copy_step<Tile>(x, w, next * kTileDepth, in, at);
    }
    commit_copies();
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
}

// To rows[row][channel] of this warp's part of K.
template <class Tile>
__device__ __forceinline__ void store_sums(const typename Tile::Sums& sums, float* rows) {
  const int g = static_cast<int>(threadIdx.x & 31) / 4;
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int i = 0; i < Tile::kRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kChannels / 8; ++j) {
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

// Beyond the last channel anything.
__device__ __forceinline__ float4 finish_change(const TermView& term, int t, int n,
                                                const QuadChange& change) {
  float sums[4] = {};
  if (change.adapter != nullptr) {
    const AdapterView& adapter = *change.adapter;
    const auto* s =
        static_cast<const __nv_bfloat16*>(term.s) + static_cast<int64_t>(t) * term.s_stride;
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
  const TileOperand x = operand_of(args.x, args.rows, args.in);
  const TileOperand w = operand_of(
      static_cast<const __nv_bfloat16*>(term.weight) + static_cast<int64_t>(n0) * args.in,
      term.channels - n0, args.in);
  const int steps = (args.in + kTileDepth - 1) / kTileDepth;
  const int of_block = (steps + blocks - 1) / blocks;
  const int begin = min(steps, rank * of_block);
  const int end = min(steps, begin + of_block);
  typename Tile::Sums sums = {};
  multiply_range<Tile>(x, w, args.in, begin + warp, end, shared_address(shared + threadIdx.x),
                       sums);
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
  bool waited = false;
  for (int first = 0; first < share; first += Tile::kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int t = (rank * share + i) / Tile::kRowQuads;
    const int n = n0 + (rank * share + i) % Tile::kRowQuads * 4;
    const bool wanted = i < share && t < args.rows && n < term.channels;
    QuadChange change;
    if (wanted) {
      fetch_change(args, term, t, n, change);
    }
    if (!waited) {
      waited = true;
      wait_for_previous();  // and its s
      let_next_start();
      cluster_wait();  // all sums are here
    }
    if (wanted) {
      float4 value = finish_change(term, t, n, change);
      float4 sum = gathered[i];
      for (int part = 1; part < blocks; ++part) {
        add_to(sum, gathered[part * share + i]);
      }
      add_to(value, sum);
      store_quad(value, term, t, n);
    }
  }
}

}  // namespace wick::cuda
