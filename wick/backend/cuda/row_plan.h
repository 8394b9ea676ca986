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

// The operations of a program and how its blocks share their work, which grow one by one: what an
// operation costs here does not depend on how many there are before it.
class RowPlanner {
 public:
  explicit RowPlanner(const Context& context) : context_(context) {}

  // Takes `next` behind the others and tells its phase its share. False, and nothing changed, where
  // memory does not suffice.
  bool add(RowOperation next);
  std::span<RowOperation> operations() { return operations_; }
  std::span<const RowOperation> operations() const { return operations_; }
  RowProgramPlan plan() const { return plan_; }
  // All operations, of which none stays.
  std::vector<RowOperation> release();

 private:
  // Of all operations together.
  struct Needs {
    int64_t blocks = 0;  // that share each
    int head_width = 0;  // of all attention; 0: there is none
    int work = 0;        // bytes of shared memory: of a phase
    int row = 0;         // and of the row that is normed
    int stage_bytes = 0;
    int places = 0;           // of the ring, that they could use
    bool many_bytes = false;  // some operation's weights want all of a block's memory
  };

  bool share_out(RowOperation& operation, Needs& needs) const;
  std::optional<RowProgramPlan> plan_of(const Needs& needs) const;

  const Context& context_;
  std::vector<RowOperation> operations_;
  Needs needs_;
  RowProgramPlan plan_;
};

}  // namespace wick::cuda
