// What each of several processes takes of a training step, so that together they do all of it.
//
// Whole micro-batches are dealt out in turn. Those that are left over (all, where there are fewer
// than processes) are cut between sequences into one part a process, as even in rows as sequences
// allow; a part may be empty, and is then left out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/data/batcher.h"

namespace wick {

struct StepPart {
  MicroBatch batch;
  int64_t micro_batch = 0;  // its place in the step
  int part = 0;             // of that micro-batch; 0 also where it is whole
};

// The parts of process `rank` of `size`, in the order of the step.
std::vector<StepPart> share_of_step(std::span<const MicroBatch> step, int rank, int size);

}  // namespace wick
