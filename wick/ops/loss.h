// Cross-entropy of a language model's head over the rows that have a target.
//
// The rows are gathered first; then head, loss and their gradients run chunk by chunk, so the
// logits of a whole batch are never alive.
#pragma once

#include <functional>

#include "wick/autograd/tape.h"

namespace wick {

struct LossRows {
  Tensor rows;     // i32 [n]: rows of the hidden states, no two the same but for those to ignore
  Tensor targets;  // i32 [n]: the id that each is to predict; -1: ignored
};

struct HeadLossOptions {
  int64_t vocab_size = 0;
  Tensor gradient_scale;           // f32 [1], usually 1 / number of targets of the whole step
  int64_t chunk_bytes = 80 << 20;  // for the logits of a chunk
  int64_t most_rows = 256;         // in a chunk
};

// hidden [T, C]; `head` maps [m, C] to logits [m, V] in memory that nothing else reads.
// Writes the losses, f32 [n]. With a tape, the gradient of gradient_scale times their sum is given
// to `hidden` at once, and to the head's parameters.
void head_loss(Backend& backend, Tape* tape, const Var& hidden, const LossRows& targets,
               const HeadLossOptions& options, const std::function<Var(Tape*, const Var&)>& head,
               const Tensor& losses);

}  // namespace wick
