// Keeps what a draw depends on: the random position and the tokens seen.
#include "wick/infer/sampler.h"

#include <cmath>

#include "wick/base/error.h"

namespace wick {

namespace {

constexpr uint64_t kSampleStream = 0x53414D504CULL << 24;  // "SAMPL"

}  // namespace

Sampler::Sampler(Backend& backend, const SamplingOptions& options)
    : backend_(backend),
      options_(options),
      random_(options.seed, kSampleStream),
      id_(backend.allocate({1}, DType::i32)) {
  check(options.temperature >= 0 && std::isfinite(options.temperature),
        "sampling: temperature must be 0 or more, not {}", options.temperature);
  check(options.top_k >= 0, "sampling: top-k must be 0 (all) or more, not {}", options.top_k);
  check(options.top_p > 0 && options.top_p <= 1, "sampling: top-p must be in (0, 1], not {}",
        options.top_p);
  check(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
        "sampling: repetition penalty must be above 0, not {}", options.repetition_penalty);
}

void Sampler::see(std::span<const int32_t> ids) {
  if (options_.repetition_penalty == 1.0F) {
    return;
  }
  for (const int32_t id : ids) {
    const auto index = static_cast<size_t>(id);
    if (index >= is_seen_.size()) {
      is_seen_.resize(index + 1);
    }
    if (!is_seen_[index]) {
      is_seen_[index] = true;
      seen_.push_back(id);
    }
  }
}

void Sampler::draw(const Tensor& logits, const Tensor& id) {
  const SampleArgs args = {.temperature = options_.temperature,
                           .top_k = options_.top_k,
                           .top_p = options_.top_p,
                           .repetition_penalty = options_.repetition_penalty,
                           .seen = seen_,
                           .uniform = random_.uniform(drawn_++)};
  backend_.sample(args, logits, id);
}

int32_t Sampler::next(const Tensor& logits) {
  draw(logits, id_);
  int32_t id = 0;
  backend_.download(id_, std::as_writable_bytes(std::span(&id, 1)));
  see(std::span(&id, 1));
  return id;
}

}  // namespace wick
