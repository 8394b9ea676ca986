// Draws token after token from a model's logits.
//
// With temperature 0 the most likely token is taken, the first of equals. Else the order is:
// repetition penalty, temperature, top-k, top-p. The same seed and logits give the same tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/base/random.h"
#include "wick/core/backend.h"

namespace wick {

struct SamplingOptions {
  float temperature = 0.0F;         // >= 0
  int32_t top_k = 0;                // 0: all
  float top_p = 1.0F;               // in (0, 1]
  float repetition_penalty = 1.0F;  // > 0; above 1 makes what was seen less likely
  uint64_t seed = 0;
};

class Sampler {
 public:
  // Throws Error naming an option that is out of range. The back end must outlive the sampler.
  Sampler(Backend& backend, const SamplingOptions& options);

  // Counts the ids of a prompt as seen.
  void see(std::span<const int32_t> ids);
  // The next token, from logits f32 [V] (overwritten); it is seen from then on.
  int32_t next(const Tensor& logits);

  // Whether a draw can be asked for before the host has seen the one before: a repetition penalty
  // wants to know all of them.
  bool draws_ahead() const { return options_.repetition_penalty == 1.0F; }
  // Asks for the next token, which `id` (i32 [1]) holds once the device has drawn it.
  void draw(const Tensor& logits, const Tensor& id);

 private:
  Backend& backend_;
  SamplingOptions options_;
  Random random_;
  uint64_t drawn_ = 0;
  Tensor id_;                  // i32 [1]
  std::vector<int32_t> seen_;  // distinct; empty where there is no penalty
  std::vector<bool> is_seen_;  // by id
};

}  // namespace wick
