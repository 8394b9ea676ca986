// Sampling and generation: greedy is the full forward pass, draws follow the softmax, text stops
// where it should, and what cannot be generated is refused with a reason.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/behind_backend.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/infer/generator.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

using Ids = std::vector<int32_t>;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class SamplerTest : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend("cpu");

  int32_t draw(Sampler& sampler, const std::vector<float>& values) {
    const Tensor logits = backend_->allocate({static_cast<int64_t>(values.size())}, DType::f32);
    backend_->upload(std::as_bytes(std::span(values)), logits);
    return sampler.next(logits);
  }
  // How often each id is drawn in `draws`.
  std::vector<int> histogram(const SamplingOptions& options, const std::vector<float>& values,
                             int draws) {
    Sampler sampler(*backend_, options);
    std::vector<int> counts(values.size());
    for (int i = 0; i < draws; ++i) {
      ++counts[static_cast<size_t>(draw(sampler, values))];
    }
    return counts;
  }
};

TEST_F(SamplerTest, TemperatureZeroTakesTheFirstOfTheLargest) {
  Sampler sampler(*backend_, {});
  EXPECT_EQ(draw(sampler, {0.0F, 2.0F, 2.0F, 1.0F}), 1);
}

TEST_F(SamplerTest, DrawsFollowTheSoftmax) {
  // Probabilities 1/7, 2/7, 4/7; four standard deviations of 7000 draws are below 170.
  const std::vector<int> counts =
      histogram({.temperature = 1.0F, .seed = 5}, {0.0F, std::log(2.0F), std::log(4.0F)}, 7000);
  EXPECT_NEAR(counts[0], 1000, 170);
  EXPECT_NEAR(counts[1], 2000, 170);
  EXPECT_NEAR(counts[2], 4000, 170);
}

TEST_F(SamplerTest, TopKAndTopPLeaveOnlyTheLikely) {
  const std::vector<float> logits = {0.0F, std::log(2.0F), std::log(4.0F)};
  const std::vector<int> two = histogram({.temperature = 1.0F, .top_k = 2}, logits, 500);
  EXPECT_EQ(two[0], 0);
  EXPECT_GT(two[1], 0);
  // 4/7 reaches 0.5 alone.
  const std::vector<int> one = histogram({.temperature = 1.0F, .top_p = 0.5F}, logits, 500);
  EXPECT_EQ(one[2], 500);
}

TEST_F(SamplerTest, PenaltyFallsOnPromptAndDrawnTokensAlike) {
  Sampler sampler(*backend_, {.repetition_penalty = 2.0F});
  sampler.see(Ids{2});
  const std::vector<float> logits = {1.0F, 1.5F, 1.8F};
  EXPECT_EQ(draw(sampler, logits), 1);  // 1.8 / 2 < 1.5
  EXPECT_EQ(draw(sampler, logits), 0);  // 1.5 / 2 < 1
}

TEST_F(SamplerTest, TheSeedDecides) {
  const std::vector<float> flat(1000, 0.0F);
  const auto ids = [&](uint64_t seed) {
    Sampler sampler(*backend_, {.temperature = 1.0F, .seed = seed});
    Ids result;
    for (int i = 0; i < 8; ++i) {
      result.push_back(draw(sampler, flat));
    }
    return result;
  };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST_F(SamplerTest, OptionsOutOfRangeAreNamed) {
  const auto refusal = [&](const SamplingOptions& options) {
    return message_of([&] { Sampler(*backend_, options); });
  };
  EXPECT_EQ(refusal({.temperature = -1.0F}), "sampling: temperature must be 0 or more, not -1");
  EXPECT_EQ(refusal({.temperature = NAN}), "sampling: temperature must be 0 or more, not nan");
  EXPECT_EQ(refusal({.top_k = -3}), "sampling: top-k must be 0 (all) or more, not -3");
  EXPECT_EQ(refusal({.top_p = 0.0F}), "sampling: top-p must be in (0, 1], not 0");
  EXPECT_EQ(refusal({.repetition_penalty = 0.0F}),
            "sampling: repetition penalty must be above 0, not 0");
}

// On a back end that waits for each result, and on one that works on while the host reads, for
// which a token is asked for before the one before it is known.
class GeneratorTest : public testing::TestWithParam<bool> {
 protected:
  test::TemporaryFolder folder_;
  std::unique_ptr<Backend> cpu_ = make_backend("cpu");
  Profile profile_;
  std::unique_ptr<Backend> backend_ =
      std::make_unique<test::BehindBackend>(*cpu_, profile_, test::Behaviour{.behind = GetParam()});

  Bundle tiny(const test::TinyModelOptions& options = {}) {
    return open_bundle(*backend_, test::write_tiny_model(folder_.path() / "model", options));
  }
  // Greedy ids without a cache: a full forward pass a token.
  Ids slow_greedy(Decoder& decoder, Ids ids, int64_t count) {
    const size_t prompt = ids.size();
    Sampler sampler(*backend_, {});
    for (int64_t i = 0; i < count; ++i) {
      const TokenBatch batch = make_token_batch(*backend_, std::span(&ids, 1));
      const Tensor hidden = decoder.hidden(nullptr, batch, {}).value;
      const Tensor logits = decoder.logits(hidden.slice(hidden.dim(0) - 1, 1));
      ids.push_back(sampler.next(logits.reshaped({logits.elements()})));
    }
    return {ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end()};
  }
};

INSTANTIATE_TEST_SUITE_P(, GeneratorTest, testing::Bool(),
                         [](const auto& behind) { return behind.param ? "ahead" : "waiting"; });

TEST_P(GeneratorTest, CachedGreedyIsTheFullForwardPass) {
  const Bundle bundle = tiny({.family = "mistral", .seed = 2, .sliding_window = 8});
  const Ids prompt = {72, 101, 108, 108, 111};
  const Generation done = generate(*bundle.decoder, prompt, {.max_tokens = 24});
  EXPECT_EQ(done.ids, slow_greedy(*bundle.decoder, prompt, 24));
  EXPECT_EQ(done.reason, StopReason::max_tokens);
  EXPECT_EQ(done.prompt_tokens, 5);
}

TEST_P(GeneratorTest, LongPromptRunsInPiecesWithTheSameResult) {
  const Bundle bundle = tiny({.max_positions = 1300});
  Ids prompt;
  for (int32_t i = 0; i < 1100; ++i) {
    prompt.push_back((i * 37 + i / 7) % 256);
  }
  const Generation done = generate(*bundle.decoder, prompt, {.max_tokens = 4});
  EXPECT_EQ(done.ids, slow_greedy(*bundle.decoder, prompt, 4));
}

TEST_P(GeneratorTest, GreedyIdsOfARealModelAreThoseOfTransformers) {
  WICK_REQUIRE_DATA("models/stories260K-hf");
  const auto folder = test::data_folder() / "models/stories260K-hf";
  const auto golden = nlohmann::json::parse(read_text(folder / "golden.json"));
  const Ids prompt = golden.at("prompt_ids").get<Ids>();
  Ids expected = golden.at("greedy_ids").get<Ids>();
  expected.erase(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(prompt.size()));
  const Bundle bundle = open_bundle(*backend_, folder);
  const Generation done =
      generate(*bundle.decoder, prompt, {.max_tokens = static_cast<int64_t>(expected.size())});
  EXPECT_EQ(done.ids, expected);
}

TEST_P(GeneratorTest, AnyOfTheStopIdsEndsTheText) {
  const Bundle bundle = tiny();
  const Ids prompt = {72, 101};
  const Ids free = generate(*bundle.decoder, prompt, {.max_tokens = 12}).ids;
  ASSERT_EQ(free.size(), 12U);
  const int32_t stop = free[5];
  const auto first = std::find(free.begin(), free.end(), stop);
  const Generation done =
      generate(*bundle.decoder, prompt, {.max_tokens = 12, .stop_ids = {1000, stop}});
  EXPECT_EQ(done.ids, Ids(free.begin(), first));
  EXPECT_EQ(done.reason, StopReason::end_of_text);
}

TEST_P(GeneratorTest, EveryEndOfTextIdOfTheConfigEndsTheText) {
  const Bundle free = tiny();
  const Ids ids = generate(*free.decoder, Ids{72, 101}, {.max_tokens = 12}).ids;
  ASSERT_EQ(ids.size(), 12U);
  const nlohmann::json eos = {{"eos_token_id", {test::kTinyEndOfText, ids[3]}}};
  write_text_atomically(folder_.path() / "model/generation_config.json", eos.dump());
  const Bundle stopped = open_bundle(*backend_, folder_.path() / "model");
  const Generation done = generate(*stopped.decoder, Ids{72, 101}, {.max_tokens = 12});
  EXPECT_EQ(done.ids, Ids(ids.begin(), std::find(ids.begin(), ids.end(), ids[3])));
  EXPECT_EQ(done.reason, StopReason::end_of_text);
}

TEST_P(GeneratorTest, IsOneTokenAheadWhereTheDeviceIs) {
  const Bundle bundle = tiny();
  profile_.resume();
  const auto drawn = [&] { return profile_.totals()["sample"].calls; };
  const auto draws_of = [&](const GenerateOptions& options) {
    const int64_t before = drawn();
    const size_t tokens =
        generate(*bundle.decoder, Ids{72, 101}, options, [&, seen = 0](int32_t) mutable {
          return ++seen < 3;
        }).ids.size();
    EXPECT_LE(tokens, 3U);
    return drawn() - before;
  };
  EXPECT_EQ(draws_of({.max_tokens = 20}), GetParam() ? 4 : 3);
  EXPECT_EQ(draws_of({.max_tokens = 20, .sampling = {.repetition_penalty = 1.5F}}), 3);
  EXPECT_EQ(draws_of({.max_tokens = 2}), 2) << "none that cannot be wanted";
}

TEST_P(GeneratorTest, TheCallerMayStop) {
  const Bundle bundle = tiny();
  int seen = 0;
  const Generation done =
      generate(*bundle.decoder, Ids{1}, {.max_tokens = 20}, [&](int32_t) { return ++seen < 3; });
  EXPECT_EQ(done.ids.size(), 3U);
  EXPECT_EQ(done.reason, StopReason::caller);
}

TEST_P(GeneratorTest, StreamedTextIsTheTextOfAllIds) {
  const Bundle bundle = tiny();
  std::string streamed;
  const Generation done = generate_text(*bundle.decoder, bundle.tokenizer, "Hi", {.max_tokens = 40},
                                        [&](std::string_view text) { streamed += text; });
  EXPECT_EQ(streamed, done.text);
  EXPECT_EQ(done.text, bundle.tokenizer.decode(done.ids, true));
  EXPECT_FALSE(done.text.empty());
}

TEST_P(GeneratorTest, TextEndsBeforeTheFirstStopText) {
  const Bundle bundle = tiny();
  const GenerateOptions options = {.max_tokens = 60,
                                   .sampling = {.temperature = 5.0F, .top_k = 20, .seed = 4}};
  const std::string free = generate_text(*bundle.decoder, bundle.tokenizer, "Hi", options).text;
  // A stop text of several tokens from the middle, with a decoy before it that never comes.
  ASSERT_GT(free.size(), 30U);
  const std::string stop = free.substr(20, 6);
  GenerateOptions stopped = options;
  stopped.stop_text = {stop + "never", stop};
  std::string streamed;
  const Generation done = generate_text(*bundle.decoder, bundle.tokenizer, "Hi", stopped,
                                        [&](std::string_view text) { streamed += text; });
  EXPECT_EQ(done.text, free.substr(0, free.find(stop)));
  EXPECT_EQ(streamed, done.text);
  EXPECT_EQ(done.reason, StopReason::stop_string);
}

TEST_P(GeneratorTest, WhatOnlyBeginsAStopTextIsShownAtTheEnd) {
  const Bundle bundle = tiny();
  const std::string free =
      generate_text(*bundle.decoder, bundle.tokenizer, "Hi", {.max_tokens = 12}).text;
  const GenerateOptions options = {.max_tokens = 12, .stop_text = {free + "never"}};
  EXPECT_EQ(generate_text(*bundle.decoder, bundle.tokenizer, "Hi", options).text, free);
}

TEST_P(GeneratorTest, WhatCannotBeGeneratedIsRefused) {
  const Bundle bundle = tiny({.max_positions = 16});
  const auto refusal = [&](const Ids& prompt, int64_t max_tokens) {
    return message_of([&] { generate(*bundle.decoder, prompt, {.max_tokens = max_tokens}); });
  };
  EXPECT_EQ(refusal({}, 4), "generate: the prompt has no token");
  EXPECT_EQ(refusal({1, 259}, 4), "generate: id 259 is not in the model's vocabulary of 259");
  EXPECT_EQ(refusal({1}, 0), "generate: max tokens must be positive, not 0");
  EXPECT_EQ(refusal(Ids(10, 1), 7),
            "generate: a prompt of 10 tokens and 7 new ones exceed the model's context of 16");
  EXPECT_EQ(refusal(Ids(10, 1), 6), "no error");
}

}  // namespace
}  // namespace wick
