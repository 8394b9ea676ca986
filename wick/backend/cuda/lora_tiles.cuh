// The low-rank kernels for many rows of bf16, on tensor cores, bound by memory.
//
// All of them move along the rows with 512 (or 256) channels a block: a warp keeps its channels of
// A or B in registers and reads 16 rows at a time, 16 bytes a lane, straight into the operands of
// the matrix products. The order of channels (and of ranks) inside a product is free as long as
// both operands agree, so lane 4g+q takes the eight neighbours 8q to 8q+7 of row g (and g+8):
// register j of a row is then columns 2q and 2q+1 of an 8 x 8 matrix whose column 2q+e is channel
// 8q+2j+e. Ranks come in pairs of such matrices: column 2q+e of the first is rank 4q+e, of the
// second 4q+2+e.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {

constexpr int kTileRanks = 64;  // at most, of one launch

// A or B as f32, `ranks` of them.
struct TileFactor {
  const float* values = nullptr;
  int64_t stride = 0;       // of a row
  bool rank_first = false;  // rows are ranks (A) or channels (B)
  bool vector = false;      // four neighbours of a row are aligned to 16 bytes, and all there
};

// parts[b,t,r] = sum of wide[t,c] factor[c,r] over the channels of column block b; and, where
// `partials` is given, partials[p,c,r] = sum of wide[t,c] narrow[t,r] over the rows of run p.
struct TileShrink {
  const __nv_bfloat16* wide = nullptr;  // [rows, channels]
  TileFactor factor;
  int64_t rows = 0;
  int channels = 0;
  int ranks = 0;
  float* parts = nullptr;                 // [column blocks, rows, padded ranks]
  const __nv_bfloat16* narrow = nullptr;  // [rows, narrow_stride]
  int64_t narrow_stride = 0;
  float* partials = nullptr;  // [runs, channels, padded ranks]
  int64_t run_rows = 0;       // a multiple of 16
  int row_warps = 1;
};

// With low = scaling sum_b parts[b] (or low itself where there are no parts): y (+)= y_scaling low
// factor^T unless y is null; and partials[p,c,r] = sum of wide[t,c] low[t,r] over the rows of run p
// unless wide is null. With a product: y = product + bias + y_scaling low factor^T, rounded once.
struct TileExpand {
  const float* parts = nullptr;
  int part_count = 0;
  float scaling = 1.0F;
  __nv_bfloat16* low = nullptr;  // [rows, low_stride]: written where there are parts, else read
  int64_t low_stride = 0;
  TileFactor factor;
  int64_t rows = 0;
  int channels = 0;
  int ranks = 0;
  bool accumulate = true;
  float y_scaling = 1.0F;
  __nv_bfloat16* y = nullptr;
  const float* product = nullptr;       // [rows, channels]
  const __nv_bfloat16* bias = nullptr;  // [channels], or null
  const __nv_bfloat16* wide = nullptr;
  float* partials = nullptr;
  int64_t run_rows = 0;
  int row_warps = 1;
};

// Products that one launch does: of equal rows, ranks and run_rows. Those that collect are alone.
constexpr int kTileTerms = 4;

template <class Term>
struct TileGroup {
  Term of[kTileTerms];
};

template <class Term>
TileGroup<Term> group_of(std::span<const Term> terms) {
  TileGroup<Term> group;
  std::copy(terms.begin(), terms.end(), group.of);
  return group;
}

int padded_ranks(int ranks);  // 8, 16, 32 or 64
// How many blocks share the rows.
int64_t tile_columns(int64_t channels, int ranks, int row_warps);
// Of a block that collects: how many of its eight warps have the same channels (and other rows): 1,
// 2 or 4, for more blocks where rows and channels are few.
int tile_row_warps(const Context& context, int64_t rows, int channels, int ranks);
// Rows of a block, where `columns` blocks share the rows: few enough to fill the device. A block
// that collects leaves a row of sums for each channel, so it takes more rows where there are many.
int64_t tile_run_rows(const Context& context, int64_t rows, int64_t columns, int ranks,
                      bool collect);

void shrink_tiles(const Context& context, std::span<const TileShrink> terms);
// Follows shrink_tiles where there are parts.
void expand_tiles(const Context& context, std::span<const TileExpand> terms);
// The first stage of expand_tiles alone, right after shrink_tiles: low from the parts.
void add_parts(const Context& context, const TileExpand& args);

}  // namespace wick::cuda
