// Loss and perplexity of a model, with or without an adapter attached, on samples.
#pragma once

#include <functional>
#include <span>

#include "wick/core/communicator.h"
#include "wick/data/records.h"
#include "wick/models/decoder.h"

namespace wick {

inline constexpr int64_t kBatchTokens = 2048;

struct Evaluation {
  double loss = 0;        // nats a target token, mean over all target tokens
  double perplexity = 0;  // exp(loss)
  int64_t tokens = 0;     // run through the model
  int64_t target_tokens = 0;
  double seconds = 0;
};

// Dropout is off and nothing is kept for a backward pass. `batch_tokens` bounds the tokens that run
// together. `on_progress`, if given, is called with the samples done.
Evaluation evaluate(Decoder& decoder, std::span<const Sample> samples,
                    int64_t batch_tokens = kBatchTokens,
                    const std::function<void(int64_t)>& on_progress = {});
// The work of the above shared by several processes; all have the result.
Evaluation evaluate(Decoder& decoder, std::span<const Sample> samples, Communicator& ranks);

}  // namespace wick
