// Shares the channels of linear layers of few rows out, and picks their kernel.
#include <algorithm>

#include "wick/backend/cuda/linears_row.h"
#include "wick/backend/cuda/lora.h"

namespace wick::cuda {
namespace {

constexpr int kMostRank = 64;
constexpr int kClusterBlocks = 4;  // fills processors of 16 and of 18 multiprocessors

// How the channels are shared out.
struct Plan {
  int channels_of_warp;
  unsigned grid;
  unsigned cluster;
};

// Gives each layer blocks in proportion to its channels, no more than have work, so that all warps
// make the same number of rounds.
Plan share_out(const Context& context, bool adapted, int weight_bytes, LinearsArgs& args) {
  int64_t channels = 0;
  for (int i = 0; i < args.terms; ++i) {
    channels += args.term[i].channels;
  }
  constexpr int kManyRounds = 8;
  const int64_t most = kLinearsBlocks * context.multiprocessors;
  Plan plan{};
  const int several = args.rows == 1 ? 4 : 2;  // share each load of x
  const bool many = weight_bytes == 2 && channels >= several * kManyRounds * most * kLinearsWarps;
  plan.channels_of_warp = many ? several : 1;
  plan.cluster = adapted && context.compute_capability >= 90 ? kClusterBlocks : 1;
  const int64_t of_block = static_cast<int64_t>(plan.channels_of_warp) * kLinearsWarps;
  const int64_t rounds = ceil_div(channels, of_block * most);
  int64_t blocks = 0;
  for (int i = 0; i < args.terms; ++i) {
    TermView& term = args.term[i];
    term.first_block = static_cast<int>(blocks);
    term.blocks = static_cast<int>(
        ceil_div(ceil_div(term.channels, of_block * rounds), plan.cluster) * plan.cluster);
    blocks += term.blocks;
  }
  plan.grid = static_cast<unsigned>(blocks);
  return plan;
}

template <class T, class W, bool MANY_CHANNELS>
void launch(const Context& context, const Plan& plan, const LinearsArgs& args) {
  const auto kernel = args.rows == 1 ? linears < T, W, MANY_CHANNELS ? 4 : 1,
             1 > : args.rows <= 4 ? linears < T, W, MANY_CHANNELS ? 2 : 1, 4 > : linears < T, W,
             MANY_CHANNELS ? 2 : 1, 8 > ;
  const size_t shared = sizeof(float) * 2 * args.rows * args.width;
  launch_clusters(kernel, plan.grid, kLinearsThreads, plan.cluster, shared, context.stream,
                  context.compute_capability >= 90, args);
  check_launch("linears");
}

template <class T, class W>
void launch_of_types(const Context& context, const Plan& plan, const LinearsArgs& args) {
  if constexpr (sizeof(W) == 2) {
    if (plan.channels_of_warp > 1) {
      launch<T, W, true>(context, plan, args);
      return;
    }
  }
  launch<T, W, false>(context, plan, args);
}

template <class T>
void launch_of_weights(const Context& context, DType weights, const Plan& plan,
                       const LinearsArgs& args) {
  if (weights == DType::bf16) {
    launch_of_types<T, __nv_bfloat16>(context, plan, args);
  } else if (weights == DType::f16) {
    launch_of_types<T, __half>(context, plan, args);
  } else {
    launch_of_types<T, float>(context, plan, args);
  }
}

bool takes(const Tensor& x, std::span<const LinearTerm> terms) {
  size_t adapters = 0;
  bool same = true;
  for (const LinearTerm& term : terms) {
    adapters += term.adapters.size();
    same = same && term.weight.dtype() == terms[0].weight.dtype() &&
           widest(term.adapters) <= kMostRank;
  }
  return same && !terms.empty() && terms.size() <= kLinearsTerms && adapters <= kLinearsAdapters &&
         x.rows() >= 1 && x.rows() <= kFewRows;
}

TermView term_view(const LinearTerm& term) {
  TermView view{};
  view.weight = term.weight.address();
  view.bias = term.bias ? term.bias.address() : nullptr;
  view.bias_type = term.bias ? term.bias.dtype() : DType::f32;
  view.y = term.y.address();
  view.y_type = term.y.dtype();
  view.channels = static_cast<int>(term.weight.rows());
  view.adapters = static_cast<int>(term.adapters.size());
  if (view.adapters > 0) {
    view.s = term.s.address();
    view.s_stride = static_cast<int>(term.s.columns());
    view.row_adapter = term.row_adapter ? term.row_adapter.data<int32_t>() : nullptr;
  }
  return view;
}

}  // namespace

LinearsArgs linears_args(const Tensor& x, std::span<const LinearTerm> terms, bool comes) {
  LinearsArgs args{};
  args.x = x.address();
  args.in = static_cast<int>(x.columns());
  args.rows = static_cast<int>(x.rows());
  args.vector = args.in % 8 == 0 && (comes || aligned_to(args.x, 16));
  int adapters = 0;
  for (const LinearTerm& term : terms) {
    TermView& view = args.term[args.terms++];
    view = term_view(term);
    view.first_adapter = adapters;
    args.vector = args.vector && aligned_to(view.weight, 16);
    for (const LoraFactors& adapter : term.adapters) {
      args.adapter[adapters++] = view_of(adapter);
      args.vector = args.vector && aligned_to(adapter.a.address(), 16);
    }
    args.width = std::max(args.width, widest(term.adapters));
  }
  return args;
}

namespace {

bool one_row(const Context& context, const Tensor& x, std::span<const LinearTerm> terms,
             const RowEnds& ends) {
  if (!takes(x, terms) || x.rows() != 1) {
    return false;
  }
  LinearsArgs args = linears_args(x, terms, ends.norm != nullptr);
  return linears_row(context, terms, args, x.dtype(), ends);
}

}  // namespace

bool gated_linears_row(const Context& context, const Tensor& x, std::span<const LinearTerm> terms,
                       Activation activation, const Tensor& h) {
  const GatedResult result{activation, h};
  return one_row(context, x, terms, {.gated = &result});
}

bool normed_linears_row(const Context& context, const NormedInput& input,
                        std::span<const LinearTerm> terms) {
  return one_row(context, input.x, terms, {.norm = &input});
}

bool normed_gated_linears_row(const Context& context, const NormedInput& input,
                              std::span<const LinearTerm> terms, Activation activation,
                              const Tensor& h) {
  const GatedResult result{activation, h};
  return one_row(context, input.x, terms, {.norm = &input, .gated = &result});
}

bool linears_few_rows(const Context& context, const Tensor& x, std::span<const LinearTerm> terms) {
  if (one_row(context, x, terms, {})) {
    return true;
  }
  if (!takes(x, terms)) {
    return false;
  }
  LinearsArgs args = linears_args(x, terms, false);
  const bool adapted =
      std::ranges::any_of(terms, [](const LinearTerm& term) { return !term.adapters.empty(); });
  const Plan plan =
      share_out(context, adapted, static_cast<int>(size_of(terms[0].weight.dtype())), args);
  if (plan.grid == 0) {
    return true;
  }
  if (x.dtype() == DType::bf16) {
    launch_of_weights<__nv_bfloat16>(context, terms[0].weight.dtype(), plan, args);
  } else {
    launch_of_weights<float>(context, terms[0].weight.dtype(), plan, args);
  }
  return true;
}

}  // namespace wick::cuda
