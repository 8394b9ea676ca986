// Which layers of some tens of rows go in tiles, and how clusters share them.
#include "wick/backend/cuda/linears_tiles.h"

#include <algorithm>

#include "wick/backend/cuda/linears_tiles.cuh"
#include "wick/backend/cuda/lora.h"

namespace wick::cuda {
namespace {

// Of all layers: larger ones are bound by what the second cache gives, and cuBLASLt asks it for
// less.
constexpr int64_t kMostWeights = int64_t{1} << 20;

struct TilePlan {
  unsigned cluster;
  unsigned grid;
};

// Clusters as long as there are multiprocessors for more blocks and half the warps of a block have
// a step. With many rows half the multiprocessors are enough, and more make the others wait:
// clusters of blocks that fill a multiprocessor find no place in the rests of its processing
// clusters.
template <class Tile>
TilePlan share_out_tiles(const Context& context, LinearsArgs& args) {
  int64_t tiles = 0;
  for (int i = 0; i < args.terms; ++i) {
    tiles += ceil_div(args.term[i].channels, kTileChannels);
  }
  const int64_t most = context.multiprocessors / (Tile::kResident == 1 ? 2 : 1);
  const int64_t steps = ceil_div(args.in, kTileDepth);
  TilePlan plan{1, 0};
  while (plan.cluster < 8 && 2 * plan.cluster * tiles <= most &&
         steps >= 2 * plan.cluster * (Tile::kWarps / 2)) {
    plan.cluster *= 2;
  }
  for (int i = 0; i < args.terms; ++i) {
    TermView& term = args.term[i];
    term.first_block = static_cast<int>(plan.grid);
    term.blocks = static_cast<int>(ceil_div(term.channels, kTileChannels) * plan.cluster);
    plan.grid += static_cast<unsigned>(term.blocks);
  }
  return plan;
}

template <class Tile>
void launch(const Context& context, LinearsArgs& args) {
  const TilePlan plan = share_out_tiles<Tile>(context, args);
  const auto kernel = tile_linears<Tile>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes),
      "linears");
  launch_clusters(kernel, plan.grid, Tile::kThreads, plan.cluster, Tile::kSharedBytes,
                  context.stream, true, args);
  check_launch("linears_in_tiles");
}

bool takes_tiles(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  bool adapted = false;
  size_t adapters = 0;
  int64_t weights = 0;
  for (const LinearTerm& term : terms) {
    if (term.weight.dtype() != DType::bf16 || !aligned_to(term.weight.address(), 16)) {
      return false;
    }
    adapted = adapted || !term.adapters.empty();
    adapters += term.adapters.size();
    weights += term.weight.elements();
  }
  return context.compute_capability >= 90 && adapted && weights > 0 && weights <= kMostWeights &&
         terms.size() <= kLinearsTerms && adapters <= kLinearsAdapters &&
         x.dtype() == DType::bf16 && x.rows() >= 1 && x.rows() <= kTileLinearRows &&
         x.columns() > 0 && x.columns() % 8 == 0 && aligned_to(x.address(), 16);
}

template <int RANKS8>
void launch_of_ranks(const Context& context, LinearsArgs& args) {
  if (args.rows <= TileShape<2, RANKS8>::kRows) {
    launch<TileShape<2, RANKS8>>(context, args);
  } else {
    launch<TileShape<4, RANKS8>>(context, args);
  }
}

// For all rows of each layer: then the kernel shrinks too.
bool has_one_small_adapter(std::span<const LinearTerm> terms) {
  return std::ranges::all_of(terms, [](const LinearTerm& term) {
    return term.adapters.empty() ||
           (!term.row_adapter && term.adapters[0].a.rows() >= 1 && widest(term.adapters) <= 16 &&
            aligned_to(term.adapters[0].a.address(), 16));
  });
}

}  // namespace

bool linears_in_tiles(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  if (!takes_tiles(context, x, terms)) {
    return false;
  }
  LinearsArgs args = linears_args(x, terms);
  const bool shrinks = has_one_small_adapter(terms);
  if (!shrinks) {
    for (const LinearTerm& term : terms) {
      if (!term.adapters.empty()) {
        lora_shrink(context, x, term.adapters, term.row_adapter, term.s);
      }
    }
  }
  const int ranks8 = shrinks ? ceil_div(args.width, 8) : 0;
  if (ranks8 == 0) {
    launch_of_ranks<0>(context, args);
  } else if (ranks8 == 1) {
    launch_of_ranks<1>(context, args);
  } else {
    launch_of_ranks<2>(context, args);
  }
  return true;
}

}  // namespace wick::cuda
