// The loop of generation, and the text that comes out of it.
#include "wick/infer/generator.h"

#include <algorithm>
#include <chrono>

#include "wick/base/error.h"

namespace wick {

namespace {

// Prompt tokens a forward pass: bounds the memory of a long prompt.
constexpr size_t kPromptChunk = 512;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_prompt(const ModelConfig& config, std::span<const int32_t> prompt, int64_t max_tokens) {
  check(!prompt.empty(), "generate: the prompt has no token");
  check(max_tokens > 0, "generate: max tokens must be positive, not {}", max_tokens);
  for (const int32_t id : prompt) {
    check(id >= 0 && id < config.vocab_size,
          "generate: id {} is not in the model's vocabulary of {}", id, config.vocab_size);
  }
  const auto size = static_cast<int64_t>(prompt.size());
  check(size < config.max_positions && max_tokens <= config.max_positions - size,
        "generate: a prompt of {} tokens and {} new ones exceed the model's context of {}", size,
        max_tokens, config.max_positions);
}

// One sequence on its way through the model. The logits [V] that a call returns are overwritten by
// the next.
class Sequence {
 public:
  Sequence(Decoder& decoder, int64_t capacity)
      : decoder_(decoder),
        backend_(decoder.backend()),
        cache_(decoder.make_cache(capacity)),
        token_(allocate_token_batch(backend_, 1, 1)),
        logits_(backend_.allocate({1, decoder.config().vocab_size}, DType::f32)),
        recorder_(backend_.make_recorder()) {}

  Tensor read(std::span<const int32_t> prompt) {
    Tensor hidden;
    while (!prompt.empty()) {
      const auto chunk = prompt.first(std::min(prompt.size(), kPromptChunk));
      const TokenBatch batch = make_next_batch(backend_, chunk, cache_.length());
      hidden = decoder_.hidden(nullptr, batch, {}, &cache_).value;
      prompt = prompt.subspan(chunk.size());
    }
    decoder_.write_logits(hidden.slice(hidden.dim(0) - 1, 1), logits_);
    return logits_.reshaped({logits_.elements()});
  }

  // All tokens after the prompt are the same work: only the id, its position and the length of the
  // cache differ, and those lie in tensors.
  Tensor read_one(int32_t id) {
    set_next_token(backend_, id, cache_.length(), token_);
    return read_token();
  }

  // The same for an id that was drawn into `drawn`.
  Tensor read_drawn() {
    const int64_t past = cache_.length();
    if (!places_) {
      first_place_ = past;
      places_ = lay_out_places(backend_, past, cache_.capacity() - past);
    }
    const Tensor place = places_.slice(past - first_place_, 1);
    set_next_place(backend_, place.reshaped({place.elements()}), past, token_);
    return read_token();
  }
  const Tensor& drawn() const { return token_.ids; }

 private:
  Tensor read_token() {
    decoder_.begin(token_, &cache_);
    recorder_->run(0, [&] {
      decoder_.write_logits(decoder_.run(nullptr, token_, {}, &cache_).value, logits_);
    });
    return logits_.reshaped({logits_.elements()});
  }

  Decoder& decoder_;
  Backend& backend_;
  KvCache cache_;
  TokenBatch token_;
  Tensor places_;  // of all tokens from first_place_ on
  int64_t first_place_ = 0;
  Tensor logits_;
  std::unique_ptr<Recorder> recorder_;
};

// The ids that follow a prompt. Where the device works on while the host reads, a token is asked
// for before the one before it has come to the host: the device then need not wait for the host
// between two tokens. The last one asked for may so turn out not to be wanted.
class Continuation {
 public:
  Continuation(Sequence& sequence, Sampler& sampler, Backend& backend)
      : sequence_(sequence),
        sampler_(sampler),
        backend_(backend),
        readback_(backend.make_readback(sizeof(int32_t))),
        ahead_(readback_->runs_behind() && sampler.draws_ahead()) {}

  // `more`: another token may be wanted after this one.
  int32_t first(std::span<const int32_t> prompt, bool more) {
    const Tensor logits = sequence_.read(prompt);
    if (!ahead_) {
      return last_ = sampler_.next(logits);
    }
    sampler_.draw(logits, sequence_.drawn());
    return take(more);
  }

  int32_t next(bool more) {
    if (!ahead_) {
      return last_ = sampler_.next(sequence_.read_one(last_));
    }
    return take(more);
  }

  // Lets what was asked for and is not wanted come to its end.
  void finish() {
    if (ahead_) {
      backend_.synchronize();
    }
  }

 private:
  int32_t take(bool more) {
    readback_->begin(sequence_.drawn());
    if (more) {
      sampler_.draw(sequence_.read_drawn(), sequence_.drawn());
    }
    int32_t id = 0;
    readback_->take(std::as_writable_bytes(std::span(&id, 1)));
    return id;
  }

  Sequence& sequence_;
  Sampler& sampler_;
  Backend& backend_;
  std::unique_ptr<Readback> readback_;
  bool ahead_;
  int32_t last_ = 0;
};

// Passes text on up to the first stop text, holding back what may become one.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stops, const OnText& on_text)
      : stops_(stops), on_text_(on_text) {
    for (const std::string& stop : stops) {
      check(!stop.empty(), "generate: a stop text is empty");
    }
  }

  // False once a stop text was found.
  bool push(std::string_view text) {
    held_ += text;
    size_t found = std::string::npos;
    for (const std::string& stop : stops_) {
      found = std::min(found, held_.find(stop));
    }
    if (found != std::string::npos) {
      emit(found);
      held_.clear();
      return false;
    }
    emit(held_.size() - longest_begun_stop());
    return true;
  }
  void finish() { emit(held_.size()); }
  std::string take() { return std::move(text_); }

 private:
  // The length of the longest end of `held_` that begins a stop text.
  size_t longest_begun_stop() const {
    size_t longest = 0;
    for (const std::string& stop : stops_) {
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
        if (held_.ends_with(std::string_view(stop).substr(0, n))) {
          longest = n;
        }
      }
    }
    return longest;
  }
  void emit(size_t count) {
    if (count > 0 && on_text_) {
      on_text_(std::string_view(held_).substr(0, count));
    }
    text_.append(held_, 0, count);
    held_.erase(0, count);
  }

  const std::vector<std::string>& stops_;
  const OnText& on_text_;
  std::string held_;
  std::string text_;
};

}  // namespace

Generation generate(Decoder& decoder, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const OnToken& on_token) {
  const ModelConfig& config = decoder.config();
  check_prompt(config, prompt, options.max_tokens);
  std::vector<int32_t> stop_ids = config.eos_ids;
  stop_ids.insert(stop_ids.end(), options.stop_ids.begin(), options.stop_ids.end());
  Sampler sampler(decoder.backend(), options.sampling);
  sampler.see(prompt);
  Sequence sequence(decoder, static_cast<int64_t>(prompt.size()) + options.max_tokens);

  Continuation continuation(sequence, sampler, decoder.backend());

  Generation result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  const auto more_after = [&](size_t tokens) {
    return static_cast<int64_t>(tokens) < options.max_tokens;
  };
  Clock::time_point start = Clock::now();
  int32_t id = continuation.first(prompt, more_after(1));
  result.prompt_seconds = seconds_since(start);
  start = Clock::now();
  while (true) {
    if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
      result.reason = StopReason::end_of_text;
      break;
    }
    result.ids.push_back(id);
    if (on_token && !on_token(id)) {
      result.reason = StopReason::caller;
      break;
    }
    if (!more_after(result.ids.size())) {
      break;
    }
    id = continuation.next(more_after(result.ids.size() + 1));
  }
  continuation.finish();
  result.decode_seconds = seconds_since(start);
  return result;
}

Generation generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                         const GenerateOptions& options, const OnText& on_text) {
  GenerateOptions with_stops = options;
  if (const auto eos = tokenizer.eos_id()) {
    with_stops.stop_ids.push_back(*eos);
  }
  const std::vector<int32_t> prompt_ids = encode_prompt(tokenizer, prompt);
  StreamingDecoder stream(tokenizer);
  for (const int32_t id : prompt_ids) {
    stream.push(id);  // some tokenizers drop the space before the first word of a text
  }
  StopFilter filter(options.stop_text, on_text);
  Generation result = generate(decoder, prompt_ids, with_stops,
                               [&](int32_t id) { return filter.push(stream.push(id)); });
  if (result.reason != StopReason::caller && filter.push(stream.finish())) {
    filter.finish();
  } else {
    result.reason = StopReason::stop_string;
  }
  result.text = filter.take();
  return result;
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int32_t> ids = tokenizer.encode(prompt, true);
  const auto eos = tokenizer.eos_id();
  if (eos && ids.size() > 1 && ids.back() == *eos) {
    ids.pop_back();
  }
  return ids;
}

}  // namespace wick
