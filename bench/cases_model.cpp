// Whole models: training steps, prefill and decoding.
#include <fmt/core.h>

#include <cmath>

#include "bench/builders.h"
#include "bench/models.h"
#include "wick/infer/generator.h"
#include "wick/train/step.h"

namespace wick::bench {

namespace {

struct TrainSizes {
  int64_t B, T;  // sequences of T tokens
  int64_t rank = 16;
  DType dtype = DType::bf16;
};

// One micro-batch in which every token but the last of each sequence is to predict the next.
MicroBatch some_batch(const TrainSizes& sizes) {
  MicroBatch batch;
  for (int64_t row = 0; row < sizes.B; ++row) {
    batch.inputs.push_back(some_ids(sizes.T));
    for (int64_t i = 0; i + 1 < sizes.T; ++i) {
      batch.target_rows.push_back(static_cast<int32_t>(row * sizes.T + i));
      batch.targets.push_back(batch.inputs.back()[static_cast<size_t>(i) + 1]);
    }
  }
  batch.rows = sizes.B * sizes.T;
  return batch;
}

// One optimiser step of LoRA on all seven projections: forward, loss on every token, backward,
// clipping, AdamW.
Case train_case(const NamedShape& shape, const TrainSizes& sizes) {
  const ModelConfig& config = shape.config;
  const auto tokens = static_cast<double>(sizes.B * sizes.T);
  Case c{.suite = "training",
         .name = fmt::format("train_step:shape={},{}T={},r={},dtype={}", shape.name,
                             sizes.B > 1 ? fmt::format("B={},", sizes.B) : "", sizes.T, sizes.rank,
                             name_of(sizes.dtype)),
         .flops = tokens * (4.0 * product_parameters(config) +
                            6.0 * adapter_parameters(config, sizes.rank)) +
                  3.0 * static_cast<double>(sizes.B) * attention_flops(config, sizes.T),
         .tokens = tokens,
         .heavy = true};
  c.prepare = [config, sizes](Backend& be) {
    struct State {
      std::unique_ptr<Decoder> decoder;
      AttachedAdapter adapter;
      std::unique_ptr<AdamW> optimizer;
      Alone alone;
      std::unique_ptr<TrainStep> step;
      std::vector<MicroBatch> batches;
      int64_t steps = 0;
    };
    auto s = std::make_shared<State>();
    s->decoder = random_decoder(be, config, sizes.dtype);
    s->adapter = attach_everywhere(be, *s->decoder, sizes.rank);
    s->optimizer = std::make_unique<AdamW>(
        be, s->adapter.values, s->adapter.grads,
        std::vector<ParameterGroup>{{0, s->adapter.values.elements(), 1.0F, 0.01F}},
        AdamWOptions{.max_gradient_norm = 1.0F});
    s->step = std::make_unique<TrainStep>(*s->decoder, *s->optimizer, 0, s->alone);
    s->batches = {some_batch(sizes)};
    const auto call = [s] {
      s->step->run(s->batches, s->steps + 1, 1e-4F, s->steps);
      ++s->steps;
    };
    return PreparedCase{.call = call, .matmul_precision = s->decoder->matmul_precision()};
  };
  return c;
}

Case prefill_case(const NamedShape& shape, int64_t T, DType dtype) {
  Case c{.suite = "inference",
         .name = fmt::format("prefill:shape={},T={},dtype={}", shape.name, T, name_of(dtype)),
         // The head sees the last token alone.
         .flops = 2.0 * static_cast<double>(T) *
                      (product_parameters(shape.config) - head_parameters(shape.config)) +
                  2.0 * head_parameters(shape.config) + attention_flops(shape.config, T),
         .tokens = static_cast<double>(T),
         .heavy = true};
  c.prepare = [config = shape.config, T, dtype](Backend& be) {
    std::shared_ptr<Decoder> decoder = random_decoder(be, config, dtype);
    const std::vector<int32_t> ids = some_ids(T);
    const auto call = [=, &be] {
      KvCache cache = decoder->make_cache(T);
      const Var hidden = decoder->hidden(nullptr, make_next_batch(be, ids, 0), {}, &cache);
      decoder->logits(hidden.value.slice(T - 1, 1));
      be.synchronize();
    };
    return PreparedCase{.call = call, .matmul_precision = decoder->matmul_precision()};
  };
  return c;
}

// `tokens` greedy tokens after a prompt, one by one; rank 0 is the base alone.
Case decode_case(const NamedShape& shape, int64_t prompt, int64_t tokens, DType dtype,
                 int64_t rank) {
  const std::string adapter = rank > 0 ? fmt::format(",r={}", rank) : "";
  Case c{.suite = "inference",
         .name = fmt::format("decode:shape={},prompt={},tokens={},dtype={}{}", shape.name, prompt,
                             tokens, name_of(dtype), adapter),
         .bytes = static_cast<double>(tokens) * product_parameters(shape.config) *
                  static_cast<double>(size_of(dtype)),
         .tokens = static_cast<double>(tokens),
         .heavy = true,
         .fits_cache = false};
  c.prepare = [=, config = shape.config](Backend& be) {
    std::shared_ptr<Decoder> decoder = random_decoder(be, config, dtype);
    if (rank > 0) {
      attach_everywhere(be, *decoder, rank).keep_for_inference(be);
    }
    const std::vector<int32_t> ids = some_ids(prompt);
    auto last = std::make_shared<Generation>();
    const auto call = [=] { *last = generate(*decoder, ids, {.max_tokens = tokens + 1}); };
    return PreparedCase{
        .call = call, .matmul_precision = decoder->matmul_precision(), .extra = [last] {
          return std::map<std::string, double>{{"seconds_after_prompt", last->decode_seconds}};
        }};
  };
  return c;
}

}  // namespace

std::vector<Case> model_cases() {
  const std::vector<NamedShape> named = model_shapes();
  std::vector<Case> cases;
  for (const NamedShape& shape : {named[0], named[1]}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      cases.push_back(train_case(shape, {.B = 1, .T = 512, .dtype = dtype}));
    }
  }
  cases.push_back(prefill_case(named[0], 512, DType::bf16));
  cases.push_back(prefill_case(named[0], 512, DType::f32));
  cases.push_back(decode_case(named[0], 16, 32, DType::bf16, 0));
  cases.push_back(decode_case(named[0], 16, 32, DType::bf16, 16));
  cases.push_back(decode_case(named[0], 16, 32, DType::f32, 0));
  cases.push_back(decode_case(named[1], 16, 32, DType::bf16, 0));
  return cases;
}

std::vector<Case> gpu_model_cases() {
  const std::vector<NamedShape> named = model_shapes();
  std::vector<Case> cases;
  for (const NamedShape& shape : named) {
    const bool large = shape.name == "qwen2.5-7b";
    cases.push_back(
        train_case(shape, large ? TrainSizes{.B = 2, .T = 4096} : TrainSizes{.B = 4, .T = 2048}));
    cases.push_back(train_case(shape, {.B = 1, .T = 512}));
  }
  // The middle shape comes last: it is what a run with a short --deadline leaves out.
  for (const NamedShape& shape : {named[0], named[2], named[1]}) {
    for (const int64_t rank : {0, 16}) {
      cases.push_back(decode_case(shape, 16, 256, DType::bf16, rank));
    }
  }
  return cases;
}

}  // namespace wick::bench
