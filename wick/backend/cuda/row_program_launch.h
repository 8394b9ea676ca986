// Programs of one row: from the plan to the kernel.
#pragma once

#include "wick/backend/cuda/row_phase.cuh"

namespace wick::cuda {

// Of a block: what the kernel itself has, beside the dynamic part.
int row_shared_bytes();
// What a phase of attention needs of it; `wide`: heads of more than 64 channels.
int attention_work_bytes(bool wide, int writers, int heads);

// Of the attention that a program has.
struct RowHeads {
  bool wide = false;          // more than 64 channels
  bool many_queries = false;  // more than eight a key head
};

void launch_row_program(const Context& context, const RowHeads& heads, int blocks,
                        size_t shared_bytes, const RowProgramArgs& program);

}  // namespace wick::cuda
