// Shapes, random weights, and what follows from the shapes.
#include "bench/models.h"

#include "bench/case.h"
#include "bench/inputs.h"
#include "wick/io/weight_source.h"

namespace wick::bench {

namespace {

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
    Tensor tensor = backend.allocate(shape_of(name), dtype_);
    pool_.fill(std::hash<std::string_view>{}(name), tensor);
    return tensor;
  }

  ModelConfig config_;
  DType dtype_;
  NormalPool pool_;
};

}  // namespace

std::vector<NamedShape> model_shapes() {
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

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : model_shapes()) {
    names.push_back(shape.name);
  }
  return names;
}

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

double product_parameters(const ModelConfig& c) {
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  const int64_t layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size);
  return static_cast<double>(c.num_layers * layer) + head_parameters(c);
}

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

}  // namespace wick::bench
