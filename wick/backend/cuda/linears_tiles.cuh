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
#include "wick/backend/cuda/linears_tile_products.cuh"

namespace wick::cuda {

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
