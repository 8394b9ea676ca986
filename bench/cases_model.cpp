// Whole models with random weights in the shapes of public ones, so that nothing is downloaded:
// training steps, prefill and decoding.
#include <fmt/core.h>

#include <cmath>

#include "bench/builders.h"
#include "bench/inputs.h"
#include "wick/infer/generator.h"
#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/models/decoder.h"
#include "wick/train/step.h"

namespace wick::bench {

namespace {

struct NamedShape {
  std::string name;
  ModelConfig config;
};

std::vector<NamedShape> shapes() {
  ModelConfig half;
  half.family = "qwen2";
  half.vocab_size = 151936;
  half.hidden_size = 896;
  half.intermediate_size = 4864;
  half.num_layers = 24;
  half.num_heads = 14;
  half.num_kv_heads = 2;
  half.head_dim = 64;
  half.max_positions = 32768;
  half.rope_theta = 1e6;
  half.qkv_bias = true;
  half.tie_word_embeddings = true;
  ModelConfig one_and_half = half;
  one_and_half.hidden_size = 1536;
  one_and_half.intermediate_size = 8960;
  one_and_half.num_layers = 28;
  one_and_half.num_heads = 12;
  one_and_half.head_dim = 128;
  ModelConfig seven = one_and_half;
  seven.vocab_size = 152064;
  seven.hidden_size = 3584;
  seven.intermediate_size = 18944;
  seven.num_heads = 28;
  seven.num_kv_heads = 4;
  seven.tie_word_embeddings = false;
  return {{"qwen2.5-0.5b", half}, {"qwen2.5-1.5b", one_and_half}, {"qwen2.5-7b", seven}};
}

// Any name holds normal numbers.
class RandomWeights : public WeightSource {
 public:
  RandomWeights(Backend& be, const ModelConfig& config, DType dtype)
      : config_(config), dtype_(dtype), pool_(be, 0.02F, dtype) {}

  std::string description() const override { return "random weights"; }
  std::vector<std::string> names() const override { return {}; }
  bool has(std::string_view name) const override {
    return !(config_.tie_word_embeddings && name == "lm_head.weight");
  }
  WeightInfo info(std::string_view name) const override { return {shape_of(name), dtype_}; }

 private:
  Shape shape_of(std::string_view name) const {
    const ModelConfig& c = config_;
    const auto is = [&](std::string_view part) {
      return name.find(part) != std::string_view::npos;
    };
    const int64_t q = c.num_heads * c.head_dim;
    const int64_t kv = c.num_kv_heads * c.head_dim;
    if (is("embed_tokens") || is("lm_head")) {
      return {c.vocab_size, c.hidden_size};
    }
    if (is("norm")) {
      return {c.hidden_size};
    }
    if (name.ends_with(".bias")) {
      return is("q_proj") ? Shape{q} : Shape{kv};
    }
    if (is("q_proj")) {
      return {q, c.hidden_size};
    }
    if (is("k_proj") || is("v_proj")) {
      return {kv, c.hidden_size};
    }
    if (is("o_proj")) {
      return {c.hidden_size, q};
    }
    return is("down_proj") ? Shape{c.hidden_size, c.intermediate_size}
                           : Shape{c.intermediate_size, c.hidden_size};
  }

  Tensor read(Backend& backend, std::string_view name) const override {
    const Tensor tensor = backend.allocate(shape_of(name), dtype_);
    pool_.fill(std::hash<std::string_view>{}(name), tensor);
    return tensor;
  }

  ModelConfig config_;
  DType dtype_;
  NormalPool pool_;
};

std::unique_ptr<Decoder> random_decoder(Backend& be, const ModelConfig& config, DType dtype) {
  return std::make_unique<Decoder>(be, config, RandomWeights(be, config, dtype));
}

AttachedAdapter attach_everywhere(Backend& be, Decoder& decoder, int64_t rank) {
  AdapterConfig config;
  config.rank = rank;
  config.alpha = 2.0 * static_cast<double>(rank);
  config.target_modules = ModuleSelection::all_linear();
  return attach_new(be, decoder.linears(), config, 0);
}

std::vector<int32_t> some_ids(int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>((i * 7919 + 13) % 1000));
  }
  return ids;
}

double head_parameters(const ModelConfig& c) {
  return static_cast<double>(c.vocab_size * c.hidden_size);
}

// Parameters that every token is multiplied with: all but the embedding's rows, the tied head
// included.
double product_parameters(const ModelConfig& c) {
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  const int64_t layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size);
  return static_cast<double>(c.num_layers * layer) + head_parameters(c);
}

// Of T causal tokens through all layers: two products of the heads' width a pair that is seen.
double attention_flops(const ModelConfig& c, int64_t T) {
  return 2.0 * static_cast<double>(T * T * c.num_heads * c.head_dim * c.num_layers);
}

double adapter_parameters(const ModelConfig& c, int64_t rank) {
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  const int64_t sides = 2 * (c.hidden_size + q) + 2 * (c.hidden_size + kv) +
                        3 * (c.hidden_size + c.intermediate_size);
  return static_cast<double>(c.num_layers * rank * sides);
}

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
      attach_everywhere(be, *decoder, rank);
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
  const std::vector<NamedShape> named = shapes();
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
  const std::vector<NamedShape> named = shapes();
  std::vector<Case> cases;
  for (const NamedShape& shape : named) {
    const bool large = shape.name == "qwen2.5-7b";
    cases.push_back(
        train_case(shape, large ? TrainSizes{.B = 2, .T = 4096} : TrainSizes{.B = 4, .T = 2048}));
    cases.push_back(train_case(shape, {.B = 1, .T = 512}));
  }
  for (const NamedShape& shape : {named[0], named[2]}) {
    for (const int64_t rank : {0, 16}) {
      cases.push_back(decode_case(shape, 16, 256, DType::bf16, rank));
    }
  }
  return cases;
}

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : shapes()) {
    names.push_back(shape.name);
  }
  return names;
}

}  // namespace wick::bench
