// Which low-rank kernels do what, and their scratch memory.
#include "wick/backend/cuda/lora.h"

#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_partials.cuh"
#include "wick/backend/cuda/lora_rows.cuh"
#include "wick/backend/cuda/lora_tiles.cuh"

namespace wick::cuda {
namespace {

// From here on each row's second trip to A and B costs more than a second launch.
constexpr int64_t kManyRows = 128;

// bf16 rows of whole 16 bytes.
bool in_tiles(const Tensor& wide) {
  return wide.dtype() == DType::bf16 && wide.rows() >= kManyRows && wide.columns() > 0 &&
         wide.columns() % 8 == 0 && aligned_to(wide.address(), 16);
}

bool narrow_in_tiles(const Tensor& s) {
  return s.dtype() == DType::bf16;
}

__nv_bfloat16* bf16_of(const Tensor& tensor) {
  return static_cast<__nv_bfloat16*>(tensor.address());
}

// Ranks [begin, begin + count) of an adapter: the tensor core kernels take at most 64 at a time.
struct RankRange {
  int begin;
  int count;
};

template <class Function>
void for_rank_ranges(int rank, const Function& function) {
  for (int begin = 0; begin < rank; begin += kTileRanks) {
    function(RankRange{begin, std::min(kTileRanks, rank - begin)});
  }
}

int64_t parts_of(int64_t channels, int ranks) {
  return ceil_div(channels, tile_columns(ranks));
}

TileFactor factor_of_a(const AdapterView& adapter, int64_t in, const RankRange& ranks) {
  return {adapter.a + ranks.begin * in, in, true};
}

TileFactor factor_of_b(const AdapterView& adapter, const RankRange& ranks) {
  return {adapter.b + ranks.begin, adapter.rank, false};
}

// Every column of blocks adds the parts up for itself, unless that is more to read than the tensor
// it works on: then they are added up once before.
void expand_parts(const Context& context, TileExpand& expand) {
  const int64_t part_bytes = parts_of(expand.channels, expand.ranks) * expand.part_count *
                             padded_ranks(expand.ranks) * int64_t{4};
  if (part_bytes > 2 * int64_t{expand.channels}) {
    add_parts(context, expand);
    expand.parts = nullptr;
  }
  expand_tiles(context, expand);
}

TileShrink shrink_of(const Context& context, const Tensor& wide, const TileFactor& factor,
                     int ranks, bool collect) {
  TileShrink shrink;
  shrink.wide = bf16_of(wide);
  shrink.factor = factor;
  shrink.rows = wide.rows();
  shrink.channels = static_cast<int>(wide.columns());
  shrink.ranks = ranks;
  shrink.run_rows = tile_run_rows(context, shrink.rows, shrink.channels, ranks, collect);
  return shrink;
}

// Of the tensor that is added to, or read for its gradient.
TileExpand expand_of(const Context& context, const Tensor& wide, const Tensor& low,
                     const TileFactor& factor, const RankRange& ranks, bool collect) {
  TileExpand expand;
  expand.low = bf16_of(low) + ranks.begin;
  expand.low_stride = low.columns();
  expand.factor = factor;
  expand.rows = wide.rows();
  expand.channels = static_cast<int>(wide.columns());
  expand.ranks = ranks.count;
  expand.run_rows = tile_run_rows(context, expand.rows, expand.channels, ranks.count, collect);
  return expand;
}

void forward_in_tiles(const Context& context, const Tensor& x, const AdapterView& adapter,
                      bool accumulate, const Tensor& s, const Tensor& y) {
  for_rank_ranges(adapter.rank, [&](const RankRange& ranks) {
    TileShrink shrink =
        shrink_of(context, x, factor_of_a(adapter, x.columns(), ranks), ranks.count, false);
    const int64_t parts = parts_of(shrink.channels, ranks.count);
    const Scratch scratch(context, parts * shrink.rows * padded_ranks(ranks.count) * sizeof(float));
    shrink.parts = scratch.as<float>();
    shrink_tiles(context, shrink);
    const Tensor& shaped = y ? y : x;
    TileExpand expand = expand_of(context, shaped, s, factor_of_b(adapter, ranks), ranks, false);
    expand.parts = shrink.parts;
    expand.part_count = static_cast<int>(parts);
    expand.y_scaling = adapter.scaling;
    expand.accumulate = accumulate || ranks.begin > 0;
    if (y) {
      expand.y = bf16_of(y);
      expand_parts(context, expand);
    } else {
      add_parts(context, expand);
    }
  });
}

void expand_in_tiles(const Context& context, const Tensor& s, const AdapterView& adapter,
                     const Tensor& y) {
  for_rank_ranges(adapter.rank, [&](const RankRange& ranks) {
    TileExpand expand = expand_of(context, y, s, factor_of_b(adapter, ranks), ranks, false);
    expand.y_scaling = adapter.scaling;
    expand.accumulate = ranks.begin > 0;
    expand.y = bf16_of(y);
    expand_tiles(context, expand);
  });
}

void backward_of_ranks(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                       const AdapterView& adapter, const RankRange& ranks, const Tensor& ds,
                       const Tensor& da, const Tensor& db, const Tensor& dx) {
  const int64_t in = x.columns();
  const int64_t out = dy.columns();
  const int padded = padded_ranks(ranks.count);
  TileShrink shrink = shrink_of(context, dy, factor_of_b(adapter, ranks), ranks.count, true);
  TileExpand expand = expand_of(context, x, ds, factor_of_a(adapter, in, ranks), ranks, true);
  const int64_t parts = parts_of(out, ranks.count);
  const int64_t a_runs = ceil_div(expand.rows, expand.run_rows);
  const int64_t b_runs = ceil_div(shrink.rows, shrink.run_rows);
  const int64_t part_size = parts * shrink.rows * padded;
  const int64_t a_size = a_runs * in * padded;
  const int64_t b_size = b_runs * out * padded;
  const Scratch scratch(context, (part_size + a_size + b_size) * sizeof(float));

  shrink.parts = scratch.as<float>();
  shrink.narrow = bf16_of(s) + ranks.begin;
  shrink.narrow_stride = s.columns();
  shrink.partials = shrink.parts + part_size;
  shrink_tiles(context, shrink);

  expand.parts = shrink.parts;
  expand.part_count = static_cast<int>(parts);
  expand.scaling = adapter.scaling;
  expand.y = dx ? bf16_of(dx) : nullptr;
  expand.wide = bf16_of(x);
  expand.partials = shrink.partials + b_size;
  expand_parts(context, expand);

  PartialSums a{expand.partials, static_cast<int>(a_runs), static_cast<int>(in), padded,
                ranks.count};
  a.rank_first = true;
  a.out = da.data<float>() + ranks.begin * in;
  a.out_stride = in;
  PartialSums b{shrink.partials, static_cast<int>(b_runs), static_cast<int>(out), padded,
                ranks.count};
  b.scaling = adapter.scaling;
  b.out = db.data<float>() + ranks.begin;
  b.out_stride = adapter.rank;
  add_partials(context, a, b);
}

void forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
             const Tensor& row_adapter, bool accumulate, const Tensor& s, const Tensor& y) {
  if (!row_adapter && in_tiles(x) && in_tiles(y) && narrow_in_tiles(s)) {
    forward_in_tiles(context, x, view_of(adapters[0]), accumulate, s, y);
  } else {
    lora_forward_rows(context, x, adapters, row_adapter,
                      {.shrink = true, .expand = true, .accumulate = accumulate}, s, y);
  }
}

}  // namespace

void lora_forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                  const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  forward(context, x, adapters, row_adapter, true, s, y);
}

void lora_delta(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                const Tensor& row_adapter, const Tensor& s, const Tensor& y) {
  forward(context, x, adapters, row_adapter, false, s, y);
}

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  const bool tiles = in_tiles(x) && in_tiles(dy) && narrow_in_tiles(s) && narrow_in_tiles(ds) &&
                     (!dx || in_tiles(dx));
  if (!tiles) {
    lora_backward_rows(context, x, s, dy, adapter, ds, da, db, dx);
    return;
  }
  const AdapterView view = view_of(adapter);
  for_rank_ranges(view.rank, [&](const RankRange& ranks) {
    backward_of_ranks(context, x, s, dy, view, ranks, ds, da, db, dx);
  });
}

void lora_shrink(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& s) {
  if (!row_adapter && in_tiles(x) && narrow_in_tiles(s)) {
    forward_in_tiles(context, x, view_of(adapters[0]), false, s, {});
  } else {
    lora_forward_rows(context, x, adapters, row_adapter, {.shrink = true, .expand = false}, s, {});
  }
}

void lora_expand(const Context& context, const Tensor& s, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& y) {
  if (!row_adapter && in_tiles(y) && narrow_in_tiles(s)) {
    expand_in_tiles(context, s, view_of(adapters[0]), y);
  } else {
    lora_forward_rows(context, {}, adapters, row_adapter,
                      {.shrink = false, .expand = true, .accumulate = false}, s, y);
  }
}

}  // namespace wick::cuda
