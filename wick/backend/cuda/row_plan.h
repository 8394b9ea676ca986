// Programs of one row: operations that wait for a launch, and how its blocks share their work.
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/row_phase.cuh"

namespace wick::cuda {

// An operation that waits. It holds what it reads from memory and what it writes, so that nothing
// else is put there before it has run.
struct RowOperation {
  RowPhase phase{};
  std::vector<Tensor> reads;                   // of memory; without weights
  std::vector<std::pair<Tensor, int>> writes;  // and which of its outputs that is; results first
  bool follows = false;                        // its row is the result of the one before
  int64_t pairs = 0;                           // channels, halved: no more blocks than that
  int64_t weight_bytes = 0;
  int head_width = 0;  // of attention: 64 or 128
};

// How a program uses its blocks.
struct RowProgramPlan {
  int blocks = 0;
  int stages = 0, stage_bytes = 0;
  int sum_at = 0, work_at = 0;
  size_t shared_bytes = 0;
};

// Shares the work of `all` out and tells it the phases; no value where memory does not suffice.
std::optional<RowProgramPlan> plan_row(const Context& context, std::span<RowOperation> all);

}  // namespace wick::cuda
