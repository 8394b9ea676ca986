// Which low-rank kernels do what, and their scratch memory.
#include "wick/backend/cuda/lora.h"

#include <deque>
#include <functional>
#include <vector>

#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_partials.cuh"
#include "wick/backend/cuda/lora_product.h"
#include "wick/backend/cuda/lora_rows.cuh"
#include "wick/backend/cuda/lora_tiles.cuh"
#include "wick/backend/cuda/matmul.h"
#include "wick/backend/cuda/temporary.h"

namespace wick::cuda {
namespace {

// From here on each row's second trip to A and B costs more than a second launch.
constexpr int64_t kManyRows = 128;

// bf16 rows of whole 16 bytes, and no fewer of them than `least`.
bool in_tiles(const Tensor& wide, int64_t least = kManyRows) {
  return wide.dtype() == DType::bf16 && wide.rows() >= least && wide.columns() > 0 &&
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

TileFactor factor_of_a(const AdapterView& adapter, int64_t in, const RankRange& ranks) {
  return {adapter.a + ranks.begin * in, in, true, in % 4 == 0 && aligned_to(adapter.a, 16)};
}

TileFactor factor_of_b(const AdapterView& adapter, const RankRange& ranks) {
  return {adapter.b + ranks.begin, adapter.rank, false,
          adapter.rank % 4 == 0 && aligned_to(adapter.b, 16)};
}

// Every column of blocks adds the parts up for itself, unless that is more to read than the tensor
// it works on and takes longer than a launch: then they are added up once before.
void expand_parts(const Context& context, std::span<TileExpand> terms) {
  constexpr int64_t kLaunchBytes = int64_t{8} << 20;  // read from the cache in the time of a launch
  const bool add = std::ranges::any_of(terms, [](const TileExpand& expand) {
    const int64_t part_bytes = tile_columns(expand.channels, expand.ranks, expand.row_warps) *
                               expand.part_count * padded_ranks(expand.ranks) * int64_t{4};
    return part_bytes > 2 * int64_t{expand.channels} && part_bytes * expand.rows > kLaunchBytes;
  });
  if (add) {
    for (TileExpand& expand : terms) {
      add_parts(context, expand);
      expand.parts = nullptr;
    }
  }
  expand_tiles(context, terms);
}

TileShrink shrink_of(const Tensor& wide, const TileFactor& factor, int ranks) {
  TileShrink shrink;
  shrink.wide = bf16_of(wide);
  shrink.factor = factor;
  shrink.rows = wide.rows();
  shrink.channels = static_cast<int>(wide.columns());
  shrink.ranks = ranks;
  return shrink;
}

// Of the tensor that is added to, or read for its gradient.
TileExpand expand_of(const Tensor& wide, const Tensor& low, const TileFactor& factor,
                     const RankRange& ranks) {
  TileExpand expand;
  expand.low = bf16_of(low) + ranks.begin;
  expand.low_stride = low.columns();
  expand.factor = factor;
  expand.rows = wide.rows();
  expand.channels = static_cast<int>(wide.columns());
  expand.ranks = ranks.count;
  return expand;
}

// Rows of a block, for all of a launch.
template <class Term>
int64_t run_rows_of(const Context& context, std::span<const Term> terms, bool collect) {
  int64_t columns = 0;
  for (const Term& term : terms) {
    columns += tile_columns(term.channels, term.ranks, 1);
  }
  return tile_run_rows(context, terms[0].rows, columns, terms[0].ranks, collect);
}

struct LowRankTerm {
  AdapterView adapter;
  Tensor s;
  Tensor y;        // empty: only s is wanted
  Tensor product;  // f32, what the change is added to, with the bias (bf16): see TileExpand
  Tensor bias;
};

void forward_of_ranks(const Context& context, const Tensor& x, std::span<const LowRankTerm> terms,
                      bool accumulate, const RankRange& ranks) {
  const int64_t parts = tile_columns(x.columns(), ranks.count, 1);
  const int64_t part_size = parts * x.rows() * padded_ranks(ranks.count);
  const Scratch scratch(context, terms.size() * part_size * sizeof(float));
  std::vector<TileShrink> shrinks;
  std::vector<TileExpand> expands;
  for (const LowRankTerm& term : terms) {
    const AdapterView& adapter = term.adapter;
    TileShrink shrink = shrink_of(x, factor_of_a(adapter, x.columns(), ranks), ranks.count);
    shrink.parts = scratch.as<float>() + shrinks.size() * part_size;
    TileExpand expand = expand_of(term.y ? term.y : x, term.s, factor_of_b(adapter, ranks), ranks);
    expand.parts = shrink.parts;
    expand.part_count = static_cast<int>(parts);
    expand.y_scaling = adapter.scaling;
    expand.accumulate = accumulate || ranks.begin > 0;
    expand.y = term.y ? bf16_of(term.y) : nullptr;
    expand.product = term.product ? term.product.data<float>() : nullptr;
    expand.bias = term.bias ? bf16_of(term.bias) : nullptr;
    shrinks.push_back(shrink);
    expands.push_back(expand);
  }
  const int64_t shrink_rows = run_rows_of<TileShrink>(context, shrinks, false);
  const int64_t expand_rows = run_rows_of<TileExpand>(context, expands, false);
  for (size_t i = 0; i < terms.size(); ++i) {
    shrinks[i].run_rows = shrink_rows;
    expands[i].run_rows = expand_rows;
  }
  shrink_tiles(context, shrinks);
  if (terms[0].y) {
    expand_parts(context, expands);
  } else {
    add_parts(context, expands[0]);
  }
}

// Of up to kTileTerms terms of one rank. Only a single one may be without y.
void forward_in_tiles(const Context& context, const Tensor& x, std::span<const LowRankTerm> terms,
                      bool accumulate) {
  for_rank_ranges(terms[0].adapter.rank, [&](const RankRange& ranks) {
    forward_of_ranks(context, x, terms, accumulate, ranks);
  });
}

void expand_in_tiles(const Context& context, const Tensor& s, const AdapterView& adapter,
                     const Tensor& y) {
  for_rank_ranges(adapter.rank, [&](const RankRange& ranks) {
    TileExpand expand = expand_of(y, s, factor_of_b(adapter, ranks), ranks);
    expand.y_scaling = adapter.scaling;
    expand.accumulate = ranks.begin > 0;
    expand.y = bf16_of(y);
    expand.run_rows = run_rows_of<TileExpand>(context, std::span(&expand, 1), false);
    expand_tiles(context, std::span(&expand, 1));
  });
}

// `change_input`, where there is one, makes dx from a whole ds.
void backward_of_ranks(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                       const AdapterView& adapter, const RankRange& ranks,
                       const LoraLinearGradients& gradients,
                       const std::function<void()>& change_input = {}) {
  const auto& [ds, da, db, dx] = gradients;
  const int64_t in = x.columns();
  const int64_t out = dy.columns();
  const int padded = padded_ranks(ranks.count);
  TileShrink shrink = shrink_of(dy, factor_of_b(adapter, ranks), ranks.count);
  TileExpand expand = expand_of(x, ds, factor_of_a(adapter, in, ranks), ranks);
  shrink.row_warps = tile_row_warps(context, shrink.rows, shrink.channels, ranks.count);
  expand.row_warps = tile_row_warps(context, expand.rows, expand.channels, ranks.count);
  shrink.run_rows = run_rows_of<TileShrink>(context, std::span(&shrink, 1), true);
  expand.run_rows = run_rows_of<TileExpand>(context, std::span(&expand, 1), true);
  const int64_t parts = tile_columns(out, ranks.count, shrink.row_warps);
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
  shrink_tiles(context, std::span(&shrink, 1));

  expand.parts = shrink.parts;
  expand.part_count = static_cast<int>(parts);
  expand.scaling = adapter.scaling;
  expand.y = dx && !change_input ? bf16_of(dx) : nullptr;
  expand.wide = bf16_of(x);
  expand.partials = shrink.partials + b_size;
  if (change_input) {
    add_parts(context, expand);
    expand.parts = nullptr;
    change_input();
    expand_tiles(context, std::span(&expand, 1));
  } else {
    expand_parts(context, std::span(&expand, 1));
  }

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

bool goes_in_tiles(const Tensor& x, const Tensor& row_adapter, const Tensor& s, const Tensor& y,
                   int64_t least = kManyRows) {
  return !row_adapter && in_tiles(x, least) && in_tiles(y, least) && narrow_in_tiles(s);
}

bool backward_in_tiles(const Tensor& x, const Tensor& s, const Tensor& dy, const Tensor& ds,
                       const Tensor& dx) {
  return in_tiles(x) && in_tiles(dy) && narrow_in_tiles(s) && narrow_in_tiles(ds) &&
         (!dx || in_tiles(dx));
}

void forward(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
             const Tensor& row_adapter, bool accumulate, const Tensor& s, const Tensor& y) {
  if (goes_in_tiles(x, row_adapter, s, y)) {
    const LowRankTerm term{view_of(adapters[0]), s, y};
    forward_in_tiles(context, x, std::span(&term, 1), accumulate);
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

// From 9.0 on, layers of some tens of rows are one kernel where they are small, and for large ones
// the third launch costs a tenth.
bool takes_onto_product(const Context& context, const Tensor& x, const LinearTerm& term) {
  const int64_t least = context.compute_capability >= 90 ? kManyRows : kFewRows + 1;
  return !term.adapters.empty() && goes_in_tiles(x, term.row_adapter, term.s, term.y, least) &&
         term.adapters[0].a.rows() <= kTileRanks;
}

void linears_onto_products(const Context& context, const Tensor& x,
                           std::span<const LinearTerm> terms) {
  constexpr size_t kGroupBytes = size_t{64} << 20;  // of products, from which on a launch is little
  std::deque<Temporary> products;
  std::vector<LowRankTerm> group;
  size_t bytes = 0;
  const auto run_group = [&] {
    if (!group.empty()) {
      forward_in_tiles(context, x, group, false);
      group.clear();
      products.clear();
      bytes = 0;
    }
  };
  for (const LinearTerm& term : terms) {
    const AdapterView adapter = view_of(term.adapters[0]);
    const size_t own = 2 * term.y.bytes();
    if (group.size() == kTileTerms || bytes + own > kGroupBytes ||
        (!group.empty() && group[0].adapter.rank != adapter.rank)) {
      run_group();
    }
    const Tensor& product = products.emplace_back(context, term.y.shape(), DType::f32).tensor();
    const bool later =
        term.bias && term.bias.dtype() == DType::bf16 && aligned_to(term.bias.address(), 16);
    matmul(context, x, term.weight, {.bias = term.bias && !later ? &term.bias : nullptr}, product);
    group.push_back({adapter, term.s, term.y, product, later ? term.bias : Tensor()});
    bytes += own;
  }
  run_group();
}

void lora_backward(const Context& context, const Tensor& x, const Tensor& s, const Tensor& dy,
                   const LoraFactors& adapter, const Tensor& ds, const Tensor& da, const Tensor& db,
                   const Tensor& dx) {
  if (!backward_in_tiles(x, s, dy, ds, dx)) {
    lora_backward_rows(context, x, s, dy, adapter, ds, da, db, dx);
    return;
  }
  const AdapterView view = view_of(adapter);
  for_rank_ranges(view.rank, [&](const RankRange& ranks) {
    backward_of_ranks(context, x, s, dy, view, ranks, {ds, da, db, dx});
  });
}

bool lora_linear_backward(const Context& context, const LoraLinearInputs& inputs, bool accumulate,
                          const LoraLinearGradients& gradients) {
  const auto& [x, s, dy, weight, factors] = inputs;
  const auto& [ds, da, db, dx] = gradients;
  const InputGradient gradient{dy, weight, ds, accumulate, dx};
  if (!backward_in_tiles(x, s, dy, ds, dx) || !lora_product_dx_gains(context, gradient)) {
    return false;
  }
  const AdapterView adapter = view_of(factors);
  backward_of_ranks(context, x, s, dy, adapter, {0, adapter.rank}, {ds, da, db, dx},
                    [&] { lora_product_dx(context, gradient, factors.a); });
  return true;
}

void lora_shrink(const Context& context, const Tensor& x, std::span<const LoraFactors> adapters,
                 const Tensor& row_adapter, const Tensor& s) {
  if (!row_adapter && in_tiles(x) && narrow_in_tiles(s)) {
    const LowRankTerm term{view_of(adapters[0]), s, {}};
    forward_in_tiles(context, x, std::span(&term, 1), false);
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
