// Forward passes over packed samples.
#include "wick/train/evaluate.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "wick/base/error.h"
#include "wick/data/batcher.h"

namespace wick {

namespace {

using OnProgress = std::function<void(int64_t)>;

Evaluation evaluate_share(Decoder& decoder, std::span<const Sample> samples, int64_t batch_tokens,
                          const OnProgress& on_progress, Communicator& ranks) {
  check(!samples.empty(), "evaluate: there is no sample");
  const auto start = std::chrono::steady_clock::now();
  const StepContext context;
  const auto [rank, size] = std::pair(ranks.place().rank, ranks.place().size);
  Evaluation result;
  double sum = 0;
  int64_t done = 0;
  int64_t number = 0;
  for (const MicroBatch& batch : pack_in_order(samples, batch_tokens)) {
    if (number++ % size == rank) {
      const TokenBatch tokens = make_token_batch(decoder.backend(), batch.inputs);
      const Var hidden = decoder.hidden(nullptr, tokens, context);
      sum += decoder.loss(nullptr, hidden, {batch.target_rows, batch.targets}, 0.0F, context);
    }
    result.tokens += batch.rows;
    result.target_tokens += static_cast<int64_t>(batch.targets.size());
    done += static_cast<int64_t>(batch.inputs.size());
    if (on_progress) {
      on_progress(done);
    }
  }
  check(result.target_tokens > 0, "evaluate: the samples have no token to predict");
  result.loss = sum_of(ranks.gather(sum)) / static_cast<double>(result.target_tokens);
  result.perplexity = std::exp(result.loss);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace

Evaluation evaluate(Decoder& decoder, std::span<const Sample> samples, int64_t batch_tokens,
                    const OnProgress& on_progress) {
  Alone alone;
  return evaluate_share(decoder, samples, batch_tokens, on_progress, alone);
}

Evaluation evaluate(Decoder& decoder, std::span<const Sample> samples, Communicator& ranks) {
  return evaluate_share(decoder, samples, kBatchTokens, {}, ranks);
}

}  // namespace wick
