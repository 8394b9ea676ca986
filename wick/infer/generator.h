// Continues a prompt, token by token, with a KV cache: one sequence at a time.
//
// Greedy ids are those of a full forward pass over the whole text after each token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wick/infer/sampler.h"
#include "wick/models/decoder.h"
#include "wick/text/tokenizer.h"

namespace wick {

enum class StopReason : uint8_t { end_of_text, max_tokens, stop_string, caller };

struct GenerateOptions {
  int64_t max_tokens = 256;            // at most so many new ones
  std::vector<int32_t> stop_ids;       // end the text beside the end-of-text ids of the model
  std::vector<std::string> stop_text;  // what comes out ends before the first of these
  SamplingOptions sampling;
};

struct Generation {
  std::vector<int32_t> ids;  // the new ones, without the one that ended the text
  std::string text;          // of generate_text
  StopReason reason = StopReason::max_tokens;
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;  // until the first new token
  double decode_seconds = 0;  // all the others
};

// Is given each new id; false ends the generation.
using OnToken = std::function<bool(int32_t id)>;
// Is given the text as it comes, whole characters only.
using OnText = std::function<void(std::string_view text)>;

// `options.stop_text` plays no part here. Throws Error where the prompt is empty, has an id that
// the model has not, or does not fit the model's context together with the new tokens.
Generation generate(Decoder& decoder, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const OnToken& on_token = {});

// From text to text. Special tokens have no text; the tokenizer's end-of-text id ends it as well.
Generation generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                         const GenerateOptions& options, const OnText& on_text = {});

// A prompt as ids: framed as the tokenizer frames a text, but left open at the end.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt);

}  // namespace wick
