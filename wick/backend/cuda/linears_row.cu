// Shares the channels and the low-rank tasks of one row out, and picks their kernel.
#include "wick/backend/cuda/linears_row.cuh"

#include <algorithm>
#include <array>

#include "wick/backend/cuda/linears_row.h"
#include "wick/backend/cuda/share_blocks.h"

namespace wick::cuda {
namespace {

// Of a block's rings together: leaves room for the blocks of the launches that follow.
constexpr int64_t kRingBytes = 64 * 1024;
// Where a multiprocessor has this much of the weights, reading them takes longer than the launches
// that follow could wait for: two blocks, which it holds alone, read faster.
constexpr int64_t kManyBytes = 160 * 1024;
constexpr int64_t kRingBytesOfMany = 80 * 1024;
// Of a block, beside what its launch asks for: the kernel's own and the system's.
constexpr int64_t kOtherSharedBytes = 2048;
// A channel is shared by warps where each gets this much of it at least, and where a block has few:
// then the warps end together. What they leave for each other takes 128 bytes a part.
constexpr int64_t kLeastColumnsOfPart = 512;
constexpr int kMostSharedChannels = 32;
int split_of(int64_t in, int channels) {
  int split = 1;
  while (channels <= kMostSharedChannels && split < kLinearsWarps &&
         in >= 2 * split * kLeastColumnsOfPart) {
    split *= 2;
  }
  return split;
}

// Each term's blocks, `most` in all where there are channels enough, and no more; returns their
// number. A multiprocessor that has no block of a launch would take two of the next.
unsigned share_out(int terms, int64_t most, RowLinearsArgs& args) {
  std::array<int64_t, kLinearsTerms> channels{};
  std::array<int64_t, kLinearsTerms> blocks{};
  for (int i = 0; i < terms; ++i) {
    channels[i] = args.linears.term[i].channels;
  }
  const auto count = static_cast<size_t>(terms);
  share_blocks(std::span(channels).first(count), most, std::span(blocks).first(count));
  int first = 0;
  args.channels = 0;
  for (int i = 0; i < terms; ++i) {
    TermView& term = args.linears.term[i];
    term.first_block = first;
    term.blocks = static_cast<int>(blocks[i]);
    first += term.blocks;
    args.channels = std::max(args.channels,
                             static_cast<int>(ceil_div(term.channels, std::max(term.blocks, 1))));
  }
  return static_cast<unsigned>(first);
}

void share_tasks(std::span<const LinearTerm> terms, const LinearsArgs& args, ShrinkTasks& shrink) {
  shrink.pieces = static_cast<int>(ceil_div(args.in, kPieceColumns));
  for (size_t i = 0; i < terms.size(); ++i) {
    shrink.first_task[i] = shrink.tasks;
    shrink.ranks[i] = widest(terms[i].adapters);
    shrink.tasks += shrink.ranks[i] * shrink.pieces;
  }
}

struct RowTypes {
  int weight_bytes, activation_bytes;
  bool gated, norms, many;
};

// Gives all but the rings its place in shared memory, from 0 on; returns the bytes.
int64_t lay_out_rest(const RowTypes& of, bool has_x, RowLinearsArgs& args) {
  const int terms = of.gated ? 2 : 1;
  const int64_t in = args.linears.in;
  int64_t bytes = 0;
  const auto take = [&](int64_t count) {
    const auto at = static_cast<int>(bytes);
    bytes += ceil_div(count, 16) * 16;
    return at;
  };
  constexpr int64_t kFloat = sizeof(float);
  args.x_at = take(has_x ? in * of.activation_bytes : 0);
  args.norm_weight_at = take(of.norms ? in * kFloat : 0);
  args.ends_at = take(args.shrink.tasks > 0 ? kFloat * kLinearsThreads * terms * kEndRanks : 0);
  args.low_at = take(terms * args.linears.width * kFloat);
  args.posted_at = take(args.linears.width * args.shrink.pieces * kFloat);
  args.parts_at = take(kFloat * args.channels * args.split * terms);
  return bytes;
}

// Puts the rings, of `bytes`, before it.
void put_rings_first(int64_t bytes, RowLinearsArgs& args) {
  for (int* at : {&args.x_at, &args.norm_weight_at, &args.ends_at, &args.low_at, &args.posted_at,
                  &args.parts_at}) {
    *at += static_cast<int>(bytes);
  }
}

// Stages of the rings, and shared memory, whose bytes it returns; `multiprocessor_bytes`: that the
// blocks of a multiprocessor share.
int64_t lay_out(const RowTypes& of, int64_t multiprocessor_bytes, RowLinearsArgs& args) {
  const int terms = of.gated ? 2 : 1;
  const int in = args.linears.in;
  args.split = split_of(in, args.channels);
  const auto slice = static_cast<int>(ceil_div(ceil_div(in, 256), args.split) * 256);
  const auto chunks = static_cast<int>(ceil_div(slice * of.weight_bytes, kChunkBytes));
  const auto places =
      static_cast<int>(ceil_div(args.channels * args.split, kLinearsWarps)) * chunks;
  args.copies_x = !of.norms && places > 1;

  const int step = of.weight_bytes == 2 ? 16 : 256 * of.weight_bytes;
  const auto own_bytes =
      static_cast<int>(ceil_div(std::min(slice, in) * of.weight_bytes, step) * step);
  args.channel_bytes = std::min(kChunkBytes, own_bytes);
  args.stage_bytes = terms * args.channel_bytes;
  const int64_t bytes = lay_out_rest(of, of.norms || args.copies_x, args);
  const int64_t own = multiprocessor_bytes / (of.many ? 2 : 1) - kOtherSharedBytes - bytes;
  const int64_t wanted = std::min(of.many ? kRingBytesOfMany : kRingBytes, own);
  const int most = of.many && chunks == 1 ? 2 : kMostStages;
  const int64_t stage_of_all = int64_t{kLinearsWarps} * args.stage_bytes;
  args.stages = static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>({places, most, wanted / stage_of_all})));
  const int64_t rings = args.stages * stage_of_all;
  put_rings_first(rings, args);
  return rings + bytes;
}

template <class Kernel>
void prepare(Kernel* kernel, size_t shared) {
  // All of the shared memory, so that no launch of a chain has to wait for another division of it.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "shared memory of linears");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)),
             "shared memory of linears");
}

struct RowLaunch {
  unsigned grid;
  size_t shared;
  bool gated, norms;
};

template <class T, class W>
void launch(const Context& context, const RowLaunch& how, const RowLinearsArgs& args) {
  const unsigned threads = args.shrink.tasks > 0 ? kRowLinearsThreads : kLinearsThreads;
  const auto kernel = how.gated
                          ? (how.norms ? linears_row<T, W, 2, true> : linears_row<T, W, 2, false>)
                          : (how.norms ? linears_row<T, W, 1, true> : linears_row<T, W, 1, false>);
  prepare(kernel, how.shared);
  launch_early(context, true, kernel, how.grid, threads, how.shared, args);
  check_launch("linears of one row");
}

template <class T>
void launch_of_weights(const Context& context, DType weights, const RowLaunch& how,
                       const RowLinearsArgs& args) {
  if (weights == DType::bf16) {
    launch<T, __nv_bfloat16>(context, how, args);
  } else if (weights == DType::f16) {
    launch<T, __half>(context, how, args);
  } else {
    launch<T, float>(context, how, args);
  }
}

bool takes(std::span<const LinearTerm> terms, const LinearsArgs& args, const RowEnds& ends) {
  int64_t channels = 0;
  for (int i = 0; i < args.terms; ++i) {
    channels += args.term[i].channels;
  }
  if (ends.gated != nullptr &&
      (terms.size() != 2 || args.term[0].channels != args.term[1].channels)) {
    return false;
  }
  if (ends.norm != nullptr) {
    const NormedInput& norm = *ends.norm;
    for (const Tensor* tensor : {&norm.a, &norm.b, &norm.sum, &norm.weight}) {
      if (*tensor && !aligned_to(tensor->address(), 16)) {
        return false;
      }
    }
    if (norm.weight.dtype() != DType::f32) {
      return false;
    }
  }
  return args.vector && channels > 0;
}

NormView view_of(const NormedInput& norm) {
  return {norm.a.address(), norm.b ? norm.b.address() : nullptr, norm.weight.data<float>(),
          norm.eps, norm.b ? norm.sum.address() : nullptr};
}

}  // namespace

bool linears_row(const Context& context, std::span<const LinearTerm> terms, LinearsArgs& args,
                 DType activations, const RowEnds& ends) {
  if (!takes(terms, args, ends)) {
    return false;
  }
  const bool gated = ends.gated != nullptr;
  RowLinearsArgs row{};
  row.linears = args;
  share_tasks(terms, args, row.shrink);
  row.shrink.mailbox = context.mailbox;
  const DType weights = terms[0].weight.dtype();
  int64_t weight_bytes = 0;
  for (const LinearTerm& term : terms) {
    weight_bytes += static_cast<int64_t>(term.weight.bytes());
  }
  const RowTypes types{.weight_bytes = static_cast<int>(size_of(weights)),
                       .activation_bytes = static_cast<int>(size_of(activations)),
                       .gated = gated,
                       .norms = ends.norm != nullptr,
                       .many = weight_bytes > kManyBytes * context.multiprocessors};
  RowLaunch how{.gated = gated, .norms = types.norms};
  how.grid = share_out(gated ? 1 : args.terms,
                       int64_t{context.multiprocessors} * (types.many ? 2 : 1), row);
  const auto multiprocessor_bytes = static_cast<int64_t>(context.shared_bytes) + 1024;
  const int64_t shared = lay_out(types, multiprocessor_bytes, row);
  how.shared = static_cast<size_t>(shared);
  // Blocks wait for what others post, so all of them must find a place at once.
  const int64_t resident = multiprocessor_bytes / (shared + kOtherSharedBytes);
  if (row.shrink.tasks > Mailbox::kSlots || resident == 0 ||
      how.grid > std::min<int64_t>(resident, kRowLinearsResident) * context.multiprocessors) {
    return false;
  }
  if (how.norms) {
    row.norm = view_of(*ends.norm);
  }
  if (gated) {
    row.gelu = ends.gated->activation == Activation::gelu_tanh;
    row.h = ends.gated->h.address();
  }
  if (activations == DType::bf16) {
    launch_of_weights<__nv_bfloat16>(context, weights, how, row);
  } else {
    launch_of_weights<float>(context, weights, how, row);
  }
  return true;
}

}  // namespace wick::cuda
