// One small tape a chunk, run backward before the next chunk starts.
#include "wick/ops/loss.h"

#include <algorithm>
#include <numeric>

#include "wick/base/error.h"

namespace wick {
namespace {

constexpr int64_t kMostRows = 256;
constexpr int64_t kLeastRows = 16;

int64_t rows_of_chunk(const HeadLossOptions& options) {
  const int64_t fitting =
      options.chunk_bytes / (options.vocab_size * static_cast<int64_t>(sizeof(float)));
  return std::clamp(fitting, kLeastRows, kMostRows);
}

double host_sum(Backend& backend, const Tensor& losses) {
  std::vector<float> host(static_cast<size_t>(losses.elements()));
  backend.download(losses, std::as_writable_bytes(std::span(host)));
  return std::accumulate(host.begin(), host.end(), 0.0);
}

}  // namespace

double head_loss(Backend& backend, Tape* tape, const Var& hidden, const LossRows& targets,
                 const HeadLossOptions& options,
                 const std::function<Var(Tape*, const Var&)>& head) {
  const int64_t count = targets.rows.elements();
  check(targets.targets.elements() == count, "loss: {} rows but {} targets", count,
        targets.targets.elements());
  const Tensor losses = backend.allocate({count}, DType::f32);
  Tensor d_hidden;
  if (tape != nullptr && hidden.needs_gradient()) {
    const Tape::Sink sink = tape->sink(hidden, hidden.value.shape());
    if (!sink.accumulate) {
      backend.fill(0.0F, sink.tensor);
    }
    d_hidden = sink.tensor;
  }
  const int64_t step = rows_of_chunk(options);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t size = std::min(step, count - begin);
    const Tensor rows = targets.rows.slice(begin, size);
    const Tensor x = backend.allocate({size, hidden.value.columns()}, DType::f32);
    backend.gather_rows(hidden.value, rows, x);

    Tape chunk(backend);
    const Var input = d_hidden ? chunk.leaf(x) : Var{x};
    Var logits = head(tape == nullptr ? nullptr : &chunk, input);
    check(logits.value.shape() == Shape({size, options.vocab_size}),
          "loss: logits are {}, expected {}", logits.value.shape().to_string(),
          Shape({size, options.vocab_size}).to_string());
    backend.cross_entropy(
        targets.targets.slice(begin, size),
        {.gradient_scale = options.gradient_scale, .gradient = logits.needs_gradient()},
        logits.value, losses.slice(begin, size));
    if (logits.needs_gradient()) {
      chunk.backward(logits.without_value(), std::move(logits.value));
      if (d_hidden) {
        backend.scatter_add_rows(chunk.gradient(input), rows, d_hidden);
      }
    }
  }
  return host_sum(backend, losses);
}

}  // namespace wick
