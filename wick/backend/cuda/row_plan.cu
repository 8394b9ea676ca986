// Shares the work of a program out to its blocks, and their shared memory to its phases.
#include <algorithm>
#include <array>
#include <utility>

#include "wick/backend/cuda/rank_pieces.cuh"
#include "wick/backend/cuda/row_plan.h"
#include "wick/backend/cuda/row_program_launch.h"
#include "wick/backend/cuda/share_blocks.h"

namespace wick::cuda {
namespace {

// A tile that is no larger comes whole, others in pieces that are no larger than kPieceBytes.
constexpr int64_t kWholeTileBytes = 32 * 1024;
constexpr int64_t kPieceBytes = 21 * 1024;
// Tiles that would be larger have fewer rows, so that those of their pieces can be longer.
constexpr int64_t kLargeTileBytes = 80 * 1024;
constexpr int64_t kLargeTileRows = 14;
// Where a multiprocessor has no phase with this much of weights, a block leaves some of its memory
// to the first cache.
constexpr int64_t kManyBytes = 160 * 1024;
constexpr int64_t kSharedBytesOfFew = 195 * 1024;
constexpr int kLeastStages = 4;

// Each term's blocks, all of them together, in proportion to its channels.
void share_channels(int blocks, LinearsPhase& phase) {
  const int terms = phase.gated ? 1 : phase.terms;
  std::array<int64_t, kRowTerms> pairs{};
  std::array<int64_t, kRowTerms> of_term{};
  for (int i = 0; i < terms; ++i) {
    pairs[i] = phase.term[i].channels / 2;
  }
  const auto count = static_cast<size_t>(terms);
  share_blocks(std::span(pairs).first(count), blocks, std::span(of_term).first(count));
  int first = 0;
  int before = 0;
  phase.channels = 0;
  for (int i = 0; i < terms; ++i) {
    RowTerm& term = phase.term[i];
    term.first_block = first;
    term.blocks = static_cast<int>(of_term[i]);
    first += term.blocks;
    term.pairs_of_block = term.channels / 2 / term.blocks;
    term.spare_pairs = term.channels / 2 % term.blocks;
    term.before = before;
    before += term.channels;
    phase.channels =
        std::max(phase.channels, 2 * (term.pairs_of_block + (term.spare_pairs > 0 ? 1 : 0)));
  }
}

int aligned(int bytes) {
  return (bytes + 15) / 16 * 16;
}

// Of shared memory, for what ends the second channels of threads.
int ends_bytes(const LinearsPhase& phase) {
  const bool reads = std::ranges::any_of(
      phase.term, [](const RowTerm& term) { return term.bias != nullptr || term.rank > 0; });
  return !reads ? 0
                : std::clamp(phase.channels - kEndRows, 0, kEndRows) * kEndThreads *
                      static_cast<int>(sizeof(OutputEnd));
}

// Of each piece of a tile but the last, which has no more: whole lines of memory where a row is,
// else an odd number. Only so have all pieces an even number where one has it, as lane_of asks.
int64_t runs_of_piece(int64_t all_runs, int64_t run_bytes) {
  const int64_t odd = all_runs % 2;
  int64_t most = kPieceBytes / run_bytes;
  most -= most % 2;
  const int64_t runs = ceil_div(all_runs, ceil_div(all_runs, most));
  return runs + runs % 2 - odd;
}

// Tiles, the low-rank tasks, and the phase's part of shared memory.
void lay_out(float bytes_per_clock, LinearsPhase& phase) {
  const int terms = phase.gated ? 2 : 1;
  const bool large = 2 * kTileRows * int64_t{phase.in} > kLargeTileBytes;
  const int64_t least = ceil_div(phase.channels, (large ? kLargeTileRows : kTileRows) / terms);
  const auto run_bytes_of = [&](int64_t tiles) {
    return 2 * terms * ceil_div(phase.channels, tiles) * kRunColumns;
  };
  // Whole tiles in an even number, for the two groups of warps.
  int64_t tiles = least + (least > 1 ? least % 2 : 0);
  if (phase.in / kRunColumns * run_bytes_of(tiles) > kWholeTileBytes) {
    tiles = least;
  }
  phase.tile_channels = static_cast<int>(ceil_div(phase.channels, tiles));
  phase.tile_reciprocal = ((1 << 16) + phase.tile_channels - 1) / phase.tile_channels;
  const int64_t run_bytes = run_bytes_of(tiles);
  const int64_t all_runs = phase.in / kRunColumns;
  phase.columns = phase.in;
  if (all_runs * run_bytes > kWholeTileBytes) {
    phase.columns = static_cast<int>(runs_of_piece(all_runs, run_bytes) * kRunColumns);
  }
  phase.pieces = static_cast<int>(ceil_div(phase.in, phase.columns));
  phase.row_bytes = 2 * phase.columns;
  phase.split = phase.pieces == 1 ? kGroupWarps : kProgramWarps;
  // A little more than the memory gives: at less it stands idle, at much more all wait for it.
  phase.pace = static_cast<int>(static_cast<float>(phase.row_bytes) / (1.1F * bytes_per_clock));
  phase.shrink_pieces = static_cast<int>(ceil_div(phase.in, kPieceColumns));
  phase.tasks = 0;
  phase.width = 0;
  for (int i = 0; i < phase.terms; ++i) {
    RowTerm& term = phase.term[i];
    term.first_task = phase.tasks;
    phase.tasks += term.rank * phase.shrink_pieces;
    phase.width = std::max(phase.width, (term.rank + 15) / 16 * 16);
  }
  RowWork& work = phase.work;
  work.x = 0;
  work.ends = work.x + aligned(2 * phase.in);
  work.low = work.ends + ends_bytes(phase);
  work.posted = work.low + aligned(4 * terms * phase.width);
  work.parts = work.posted + aligned(4 * phase.width * phase.shrink_pieces);
  work.end = work.parts + 4 * static_cast<int>(tiles) * kTileRows * phase.split;
}

int stage_bytes(const LinearsPhase& phase) {
  return (phase.gated ? 2 : 1) * phase.tile_channels * phase.row_bytes;
}

}  // namespace

// False where the blocks are too few or heads differ in kind.
bool RowPlanner::share_out(RowOperation& operation, Needs& needs) const {
  if (operation.phase.attends) {
    AttentionPhase& phase = operation.phase.attention;
    if (needs.blocks < phase.call.G ||
        (needs.head_width != 0 && needs.head_width != operation.head_width)) {
      return false;
    }
    needs.head_width = operation.head_width;
    phase.most_blocks = std::min(phase.most_blocks, static_cast<int>(needs.blocks) / phase.call.G);
    needs.work = std::max(needs.work, attention_work_bytes(operation.head_width > 64, phase.writers,
                                                           phase.call.H / phase.call.G));
    return true;
  }
  LinearsPhase& phase = operation.phase.linears;
  share_channels(static_cast<int>(needs.blocks), phase);
  phase.keeps_ends = ends_bytes(phase) > 0;
  lay_out(context_.memory_bytes_per_clock, phase);
  if (phase.tasks > RowExchange::kSumWords || phase.channels > kMostBlockChannels - kTileRows) {
    return false;
  }
  needs.many_bytes =
      needs.many_bytes || operation.weight_bytes > kManyBytes * context_.multiprocessors;
  needs.work = std::max(needs.work, phase.work.end);
  needs.row = std::max(needs.row, phase.norms ? 2 * phase.in : 0);
  needs.stage_bytes = std::max(needs.stage_bytes, stage_bytes(phase));
  needs.places += static_cast<int>(ceil_div(phase.channels, phase.tile_channels)) * phase.pieces;
  return true;
}

std::optional<RowProgramPlan> RowPlanner::plan_of(const Needs& needs) const {
  RowProgramPlan plan;
  plan.blocks = static_cast<int>(needs.blocks);
  const auto most_bytes = static_cast<int64_t>(context_.shared_bytes);
  const int64_t shared_bytes =
      needs.many_bytes ? most_bytes : std::min(most_bytes, kSharedBytesOfFew);
  const int64_t own = shared_bytes - row_shared_bytes() - aligned(needs.row) - aligned(needs.work);
  plan.stage_bytes = ceil_div(needs.stage_bytes, 128) * 128;
  if (plan.stage_bytes > 0) {
    plan.stages =
        static_cast<int>(std::min<int64_t>({kMostRowStages, needs.places, own / plan.stage_bytes}));
  }
  // An even number: two pieces that go through a stage one after the other are then the same
  // group's, or of two phases, so that nobody waits for a round of a stage before the one before
  // has come, which the parity of its barrier would not tell from the round before that.
  plan.stages -= plan.stages > 1 ? plan.stages % 2 : 0;
  if (own < 0 || (needs.places > 0 && plan.stages < std::min(kLeastStages, needs.places / 2 * 2)) ||
      (needs.places > 1 && plan.stages < 2)) {
    return std::nullopt;
  }
  plan.sum_at = plan.stages * plan.stage_bytes;
  plan.work_at = plan.sum_at + aligned(needs.row);
  plan.shared_bytes = static_cast<size_t>(plan.work_at) + aligned(needs.work);
  return plan;
}

bool RowPlanner::add(RowOperation next) {
  const int64_t most_blocks = next.phase.attends ? context_.multiprocessors : next.pairs;
  std::vector<RowOperation> all;  // where all are shared out anew
  Needs needs = needs_;
  if (operations_.empty()) {
    needs.blocks = std::min<int64_t>(context_.multiprocessors, most_blocks);
  } else if (most_blocks < needs.blocks) {
    all = operations_;
    needs = {.blocks = most_blocks};
    for (RowOperation& operation : all) {
      if (!share_out(operation, needs)) {
        return false;
      }
    }
  }
  if (!share_out(next, needs)) {
    return false;
  }
  const std::optional<RowProgramPlan> plan = plan_of(needs);
  if (!plan) {
    return false;
  }
  if (!all.empty()) {
    operations_ = std::move(all);
  }
  operations_.push_back(std::move(next));
  needs_ = needs;
  plan_ = *plan;
  return true;
}

std::vector<RowOperation> RowPlanner::release() {
  needs_ = {};
  return std::exchange(operations_, {});
}

}  // namespace wick::cuda
