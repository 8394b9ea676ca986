// One small tape a chunk, run backward before the next chunk starts.
#include "wick/ops/loss.h"

#include <algorithm>

#include "wick/base/error.h"
#include "wick/core/shape_format.h"

namespace wick {
namespace {

constexpr int64_t kLeastRows = 16;

int64_t rows_of_chunk(const HeadLossOptions& options, DType dtype) {
  const int64_t row_bytes = options.vocab_size * static_cast<int64_t>(size_of(dtype));
  return std::clamp(options.chunk_bytes / row_bytes / kLeastRows * kLeastRows, kLeastRows,
                    options.most_rows);
}

}  // namespace

void head_loss(Backend& backend, Tape* tape, const Var& hidden, const LossRows& targets,
               const HeadLossOptions& options, const std::function<Var(Tape*, const Var&)>& head,
               const Tensor& losses) {
  const int64_t count = targets.rows.elements();
  check(targets.targets.elements() == count, "loss: {} rows but {} targets", count,
        targets.targets.elements());
  const DType dtype = hidden.value.dtype();
  Tensor d_hidden;
  if (tape != nullptr && hidden.needs_gradient()) {
    const Tape::Sink sink = tape->sink(hidden, hidden.value.shape());
    if (!sink.accumulate) {
      backend.fill(0.0F, sink.tensor);
    }
    d_hidden = sink.tensor;
  }
  const int64_t step = rows_of_chunk(options, dtype);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t size = std::min(step, count - begin);
    const Tensor rows = targets.rows.slice(begin, size);
    const Tensor x = backend.allocate({size, hidden.value.columns()}, dtype);
    backend.gather_rows(hidden.value, rows, x);

    Tape chunk(backend);
    const Var input = d_hidden ? chunk.leaf(x) : Var{x};
    Var logits = head(tape == nullptr ? nullptr : &chunk, input);
    check(logits.value.shape() == Shape({size, options.vocab_size}),
          "loss: logits are {}, expected {}", logits.value.shape(),
          Shape({size, options.vocab_size}));
    backend.cross_entropy(
        targets.targets.slice(begin, size),
        {.gradient_scale = logits.needs_gradient() ? options.gradient_scale : Tensor()},
        logits.value, losses.slice(begin, size));
    if (logits.needs_gradient()) {
      chunk.backward(logits.without_value(), std::move(logits.value));
      if (d_hidden) {
        backend.scatter_add_rows(chunk.gradient(input), rows, d_hidden);
      }
    }
  }
}

}  // namespace wick
