// Shares the channels and the low-rank tasks of one row out, and picks their kernel.
#include "wick/backend/cuda/linears_row.cuh"

#include <algorithm>

#include "wick/backend/cuda/linears_row.h"

namespace wick::cuda {
namespace {

// More channels than this, without adapters, are the head's: left to the kernel that shares each
// read of the row between channels.
constexpr int64_t kMostRounds = 32;

// Warps that share a channel: as many as keep busy, each with half a batch of loads at least.
int split_of(int64_t channels, int64_t in, int64_t warps) {
  const int64_t runs = ceil_div(in, 256);
  int split = 1;
  while (split < kLinearsWarps && channels * 2 * split <= warps && runs >= 8 * split) {
    split *= 2;
  }
  return split;
}

// Each term's blocks, so that all warps make the same number of rounds; returns the grid.
unsigned share_out(const Context& context, int terms, RowLinearsArgs& args) {
  int64_t channels = 0;
  for (int i = 0; i < terms; ++i) {
    channels += args.linears.term[i].channels;
  }
  const int64_t most = kLinearsBlocks * context.multiprocessors;
  args.split = split_of(channels, args.linears.in, most * kLinearsWarps);
  const int64_t of_block = kLinearsWarps / args.split;
  const int64_t rounds = ceil_div(channels, of_block * most);
  int64_t blocks = 0;
  for (int i = 0; i < terms; ++i) {
    TermView& term = args.linears.term[i];
    term.first_block = static_cast<int>(blocks);
    term.blocks = static_cast<int>(ceil_div(term.channels, of_block * rounds));
    blocks += term.blocks;
  }
  return static_cast<unsigned>(blocks);
}

void share_tasks(std::span<const LinearTerm> terms, RowLinearsArgs& args) {
  args.pieces = static_cast<int>(ceil_div(args.linears.in, kPieceColumns));
  for (size_t i = 0; i < terms.size(); ++i) {
    args.first_task[i] = args.tasks;
    args.ranks[i] = widest(terms[i].adapters);
    args.tasks += args.ranks[i] * args.pieces;
  }
}

template <class T, class W>
void launch(const Context& context, unsigned grid, bool gated, const RowLinearsArgs& args) {
  const unsigned threads = args.tasks > 0 ? kRowLinearsThreads : kLinearsThreads;
  const size_t shared = sizeof(float) * (gated ? 2 : 1) * args.linears.width;
  launch_early(context, true, gated ? linears_row<T, W, 2> : linears_row<T, W, 1>, grid, threads,
               shared, args);
  check_launch("linears of one row");
}

template <class T>
void launch_of_weights(const Context& context, DType weights, unsigned grid, bool gated,
                       const RowLinearsArgs& args) {
  if (weights == DType::bf16) {
    launch<T, __nv_bfloat16>(context, grid, gated, args);
  } else if (weights == DType::f16) {
    launch<T, __half>(context, grid, gated, args);
  } else {
    launch<T, float>(context, grid, gated, args);
  }
}

bool takes(const Context& context, std::span<const LinearTerm> terms, const LinearsArgs& args,
           const GatedResult* gated) {
  if (gated != nullptr) {
    return args.vector && terms.size() == 2 && args.term[0].channels == args.term[1].channels &&
           args.term[0].channels > 0;
  }
  int64_t channels = 0;
  bool adapted = false;
  for (int i = 0; i < args.terms; ++i) {
    channels += args.term[i].channels;
    adapted = adapted || args.term[i].adapters > 0;
  }
  const int64_t round = int64_t{kLinearsBlocks} * context.multiprocessors * kLinearsWarps;
  return args.vector && channels > 0 && (adapted || channels < kMostRounds * round);
}

}  // namespace

bool linears_row(const Context& context, std::span<const LinearTerm> terms, LinearsArgs& args,
                 DType activations, const GatedResult* gated) {
  if (!takes(context, terms, args, gated)) {
    return false;
  }
  RowLinearsArgs row{};
  row.linears = args;
  share_tasks(terms, row);
  if (row.tasks > Mailbox::kSlots) {
    return false;
  }
  const unsigned grid = share_out(context, gated != nullptr ? 1 : args.terms, row);
  row.mailbox = context.mailbox;
  if (gated != nullptr) {
    row.gelu = gated->activation == Activation::gelu_tanh;
    row.h = gated->h.address();
  }
  if (activations == DType::bf16) {
    launch_of_weights<__nv_bfloat16>(context, terms[0].weight.dtype(), grid, gated != nullptr, row);
  } else {
    launch_of_weights<float>(context, terms[0].weight.dtype(), grid, gated != nullptr, row);
  }
  return true;
}

}  // namespace wick::cuda
