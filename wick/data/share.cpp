// Dealing and cutting micro-batches.
#include "wick/data/share.h"

#include <algorithm>
#include <utility>

namespace wick {

namespace {

// The sequences whose middle row lies in the part.
MicroBatch cut(const MicroBatch& whole, int part, int parts) {
  MicroBatch cut;
  int64_t row = 0;
  int64_t first_row = -1;
  for (const std::vector<int32_t>& sequence : whole.inputs) {
    const auto rows = static_cast<int64_t>(sequence.size());
    if ((2 * row + rows) * parts / (2 * whole.rows) == part) {
      first_row = first_row < 0 ? row : first_row;
      cut.inputs.push_back(sequence);
      cut.rows += rows;
    }
    row += rows;
  }
  for (size_t i = 0; i < whole.targets.size(); ++i) {
    const int64_t at = whole.target_rows[i] - first_row;
    if (first_row >= 0 && at >= 0 && at < cut.rows) {
      cut.target_rows.push_back(static_cast<int32_t>(at));
      cut.targets.push_back(whole.targets[i]);
    }
  }
  return cut;
}

}  // namespace

std::vector<StepPart> share_of_step(std::span<const MicroBatch> step, int rank, int size) {
  const auto count = static_cast<int64_t>(step.size());
  const int64_t dealt = count - count % size;
  std::vector<StepPart> share;
  for (int64_t i = 0; i < count; ++i) {
    const MicroBatch& batch = step[static_cast<size_t>(i)];
    if (i >= dealt) {
      MicroBatch part = cut(batch, rank, size);
      if (part.rows > 0) {
        share.push_back({std::move(part), i, rank});
      }
    } else if (i % size == rank) {
      share.push_back({batch, i, 0});
    }
  }
  return share;
}

}  // namespace wick
