// Names, shapes and wiring of the decoder's weights, and its passes.
#include "wick/models/decoder.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "wick/base/error.h"
#include "wick/base/random.h"
#include "wick/io/weight_source.h"
#include "wick/models/rope_table.h"
#include "wick/ops/activation.h"
#include "wick/ops/embedding.h"
#include "wick/ops/norm.h"

namespace wick {
namespace {

constexpr uint64_t kInitialWeights = 0x494E4954ULL
                                     << 32;  // stream: "INIT", plus the weight's index
constexpr float kInitialDeviation = 0.02F;

Tensor converted(Backend& backend, const Tensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) {
    return tensor;
  }
  Tensor other = backend.allocate(tensor.shape(), dtype);
  backend.cast(tensor, other);
  return other;
}

}  // namespace

Decoder::Decoder(Backend& backend, ModelConfig config, const WeightSource& weights, HeldType held)
    : Decoder(backend, std::move(config),
              [&](const std::string& name, const Shape& shape, WeightKind kind) {
                const Tensor tensor = weights.load(backend, name, shape);
                const DType stored = tensor.dtype();
                if (kind == WeightKind::matrix) {
                  return converted(backend, tensor,
                                   held == HeldType::stored ? stored : backend.weight_type(stored));
                }
                // A product adds a bias as it stands where that is the type of its result.
                const bool as_stored =
                    kind == WeightKind::bias && backend.activation_type(stored) == stored;
                return converted(backend, tensor, as_stored ? stored : DType::f32);
              }) {}

std::unique_ptr<Decoder> Decoder::random(Backend& backend, const ModelConfig& config,
                                         uint64_t seed) {
  uint64_t index = 0;
  const Load load = [&](const std::string&, const Shape& shape, WeightKind kind) {
    const Random random(seed, kInitialWeights + index++);
    std::vector<float> host(static_cast<size_t>(shape.elements()),
                            kind == WeightKind::norm ? 1.0F : 0.0F);
    if (kind == WeightKind::matrix) {
      for (size_t i = 0; i < host.size(); ++i) {
        host[i] = kInitialDeviation * random.normal(i);
      }
    }
    Tensor tensor = backend.allocate(shape, DType::f32);
    backend.upload(std::as_bytes(std::span(host)), tensor);
    return tensor;
  };
  return std::unique_ptr<Decoder>(new Decoder(backend, config, load));
}

Decoder::Decoder(Backend& backend, ModelConfig config, const Load& load)
    : backend_(backend), config_(std::move(config)) {
  const ModelConfig& c = config_;
  const auto norm = [&](const std::string& name, int64_t size) {
    return Parameter{name + ".weight", load(name + ".weight", {size}, WeightKind::norm)};
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    LinearLayer layer{name,
                      {name + ".weight", load(name + ".weight", {out, in}, WeightKind::matrix)}};
    if (bias) {
      layer.bias = Parameter{name + ".bias", load(name + ".bias", {out}, WeightKind::bias)};
    }
    return layer;
  };
  const int64_t q_size = c.num_heads * c.head_dim;
  const int64_t kv_size = c.num_kv_heads * c.head_dim;
  embedding_ = {
      "model.embed_tokens.weight",
      load("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, WeightKind::matrix)};
  activation_type_ = backend.activation_type(embedding_.value.dtype());
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    DecoderBlock block;
    block.input_norm = norm(layer + "input_layernorm", c.hidden_size);
    block.q_proj = linear(attention + "q_proj", q_size, c.hidden_size, c.qkv_bias);
    block.k_proj = linear(attention + "k_proj", kv_size, c.hidden_size, c.qkv_bias);
    block.v_proj = linear(attention + "v_proj", kv_size, c.hidden_size, c.qkv_bias);
    block.o_proj = linear(attention + "o_proj", c.hidden_size, q_size, c.output_bias);
    if (c.qk_norm) {
      block.q_norm = norm(attention + "q_norm", c.head_dim);
      block.k_norm = norm(attention + "k_norm", c.head_dim);
    }
    block.post_norm = norm(layer + "post_attention_layernorm", c.hidden_size);
    block.gate_proj = linear(mlp + "gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    block.up_proj = linear(mlp + "up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    block.down_proj = linear(mlp + "down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
    blocks_.push_back(std::move(block));
    shapes_.push_back({.num_heads = c.num_heads,
                       .num_kv_heads = c.num_kv_heads,
                       .head_dim = c.head_dim,
                       .sliding_window = c.window(i),
                       .norm_eps = c.rms_norm_eps});
  }
  final_norm_ = norm("model.norm", c.hidden_size);
  if (c.tie_word_embeddings) {
    head_ = {"lm_head", {"lm_head.weight", embedding_.value}};
  } else {
    head_ = linear("lm_head", c.vocab_size, c.hidden_size, false);
  }
}

Var Decoder::hidden(Tape* tape, const TokenBatch& batch, const StepContext& context,
                    KvCache* cache) {
  check(cache == nullptr || tape == nullptr,
        "decoder: a KV cache is for inference, without a tape");
  begin(batch, cache);
  return run(tape, batch, context, cache);
}

void Decoder::begin(const TokenBatch& batch, KvCache* cache) {
  check(batch.largest_id < config_.vocab_size,
        "decoder: token id {} is outside the vocabulary of {}", batch.largest_id,
        config_.vocab_size);
  check(batch.end_position <= config_.max_positions,
        "decoder: a sequence of {} tokens is longer than the model's context of {}",
        batch.end_position, config_.max_positions);
  check(batch.past == (cache == nullptr ? 0 : cache->length()),
        "decoder: the batch continues after {} tokens, the cache holds {}", batch.past,
        cache == nullptr ? 0 : cache->length());
  if (cache != nullptr) {
    check(batch.spans.dim(0) == 1, "decoder: a KV cache holds one sequence, not {}",
          batch.spans.dim(0));
    cache->advance(batch.tokens());
  }
  // All that the batch's memory has room for: work that is recorded now reads the same table when
  // it is replayed for positions that come later.
  reserve_positions(cache != nullptr ? cache->capacity() : batch.tokens());
}

Var Decoder::run(Tape* tape, const TokenBatch& batch, const StepContext& context,
                 KvCache* cache) const {
  const BlockInputs inputs{batch.positions, batch.spans, rope_table_};
  Stream stream{embedding(backend_, tape, embedding_, batch.ids, activation_type_), {}};
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const DecoderBlock& block = blocks_[i];
    const BlockShape& shape = shapes_[i];
    if (checkpointing_ && tape != nullptr) {
      const auto whole = [&backend = backend_, &block, &shape, inputs, context](Tape* inner,
                                                                                const Var& input) {
        Stream out = block.forward(backend, inner, {input, {}}, shape, inputs, context, nullptr);
        return add(backend, inner, out.x, std::move(out.change));
      };
      stream.x = checkpoint(backend_, tape, stream.x, block.trainable(), whole);
    } else {
      stream = block.forward(backend_, tape, std::move(stream), shape, inputs, context,
                             cache == nullptr ? nullptr : &cache->layer(static_cast<int64_t>(i)));
    }
  }
  return norm_of(backend_, tape, std::move(stream), final_norm_, config_.rms_norm_eps).normed;
}

Tensor Decoder::logits(const Tensor& hidden_rows) const {
  Tensor logits = backend_.allocate({hidden_rows.rows(), config_.vocab_size}, DType::f32);
  write_logits(hidden_rows, logits);
  return logits;
}

void Decoder::write_logits(const Tensor& hidden_rows, const Tensor& logits) const {
  LinearTerm term{.weight = head_.weight.value, .y = logits};
  LoraFactors factors;
  if (head_.lora) {
    factors = {head_.lora->a.value, head_.lora->b.value, head_.lora->scaling};
    term.adapters = {&factors, 1};
    term.s = backend_.allocate({hidden_rows.rows(), head_.lora->rank()}, hidden_rows.dtype());
  }
  backend_.linears(hidden_rows, {&term, 1});
}

void Decoder::check_targets(const LossTargets& targets, int64_t batch_rows) const {
  check(targets.rows.size() == targets.ids.size(), "loss: {} rows but {} targets",
        targets.rows.size(), targets.ids.size());
  const auto outside = [](std::span<const int32_t> values, int64_t bound) {
    return std::find_if(values.begin(), values.end(),
                        [bound](int32_t value) { return value < 0 || value >= bound; });
  };
  const auto row = outside(targets.rows, batch_rows);
  check(row == targets.rows.end(), "loss: row {} is outside the batch of {}",
        row == targets.rows.end() ? 0 : *row, batch_rows);
  const auto id = outside(targets.ids, config_.vocab_size);
  check(id == targets.ids.end(), "loss: target id {} is outside the vocabulary of {}",
        id == targets.ids.end() ? 0 : *id, config_.vocab_size);
}

double Decoder::loss(Tape* tape, const Var& hidden, const LossTargets& targets,
                     float gradient_scale, const StepContext& context) const {
  check_targets(targets, hidden.value.rows());
  if (targets.rows.empty()) {
    return 0.0;
  }
  const Shape count{static_cast<int64_t>(targets.rows.size())};
  const LossRows rows{upload_ids(backend_, targets.rows, count),
                      upload_ids(backend_, targets.ids, count)};
  const Tensor scale = backend_.allocate({1}, DType::f32);
  backend_.upload(std::as_bytes(std::span(&gradient_scale, 1)), scale);
  const Tensor losses = backend_.allocate(count, DType::f32);
  write_losses(tape, hidden, rows, scale, context, losses);
  std::vector<float> host(targets.rows.size());
  backend_.download(losses, std::as_writable_bytes(std::span(host)));
  return std::accumulate(host.begin(), host.end(), 0.0);
}

void Decoder::write_losses(Tape* tape, const Var& hidden, const LossRows& targets,
                           const Tensor& gradient_scale, const StepContext& context,
                           const Tensor& losses) const {
  HeadLossOptions options{.vocab_size = config_.vocab_size, .gradient_scale = gradient_scale};
  if (activation_type_ == DType::bf16) {  // a GPU: wider products, and memory to spare
    options.chunk_bytes = 320 << 20;
    options.most_rows = 2048;
  }
  // A dropout mask is counted from the first element of its input, so each chunk has its own seed.
  StepContext chunk = context;
  uint64_t chunks = 0;
  const auto head = [&](Tape* chunk_tape, const Var& x) {
    chunk.seed = context.seed ^ (chunks++ << 40);
    return head_.forward(backend_, chunk_tape, x, chunk);
  };
  head_loss(backend_, tape, hidden, targets, options, head, losses);
}

KvCache Decoder::make_cache(int64_t capacity) const {
  check(capacity <= config_.max_positions,
        "decoder: a cache of {} tokens is longer than the model's context of {}", capacity,
        config_.max_positions);
  return KvCache(backend_, {config_.num_layers, capacity, config_.num_kv_heads, config_.head_dim},
                 activation_type_);
}

std::vector<LinearLayer*> Decoder::linears() {
  std::vector<LinearLayer*> all;
  for (DecoderBlock& block : blocks_) {
    const std::vector<LinearLayer*> layers = block.linears();
    all.insert(all.end(), layers.begin(), layers.end());
  }
  all.push_back(&head_);
  return all;
}

MatmulPrecision Decoder::matmul_precision() {
  const std::vector<LinearLayer*> all = linears();
  const bool medium =
      activation_type_ == DType::bf16 || std::ranges::any_of(all, [&](const LinearLayer* layer) {
        const DType weights = layer->weight.value.dtype();
        return backend_.matmul_precision(weights) == MatmulPrecision::medium;
      });
  return medium ? MatmulPrecision::medium : MatmulPrecision::highest;
}

std::vector<Parameter*> Decoder::parameters() {
  std::vector<Parameter*> all = {&embedding_};
  for (DecoderBlock& block : blocks_) {
    const std::vector<Parameter*> parameters = block.parameters();
    all.insert(all.end(), parameters.begin(), parameters.end());
  }
  all.push_back(&final_norm_);
  if (!tied()) {
    all.push_back(&head_.weight);
  }
  return all;
}

FlatParameters Decoder::train_all_weights() {
  const bool was_tied = tied();
  FlatParameters flat;
  int64_t count = 0;
  const std::vector<Parameter*> all = parameters();
  for (const Parameter* parameter : all) {
    flat.segments.push_back({parameter->name, count, parameter->value.shape()});
    count += parameter->value.elements();
  }
  flat.values = backend_.allocate({count}, DType::f32);
  flat.grads = backend_.allocate({count}, DType::f32);
  backend_.fill(0.0F, flat.grads);
  for (size_t i = 0; i < all.size(); ++i) {
    const FlatParameters::Segment& segment = flat.segments[i];
    const Tensor value = flat.values.part(segment.begin, segment.shape);
    if (all[i]->value.dtype() == DType::f32) {
      backend_.copy(all[i]->value, value);
    } else {
      backend_.cast(all[i]->value, value);
    }
    all[i]->value = value;
    all[i]->grad = flat.grads.part(segment.begin, segment.shape);
  }
  if (was_tied) {
    head_.weight.value = embedding_.value;
    head_.weight.grad = embedding_.grad;
  }
  return flat;
}

bool Decoder::tied() const {
  return head_.weight.value.address() == embedding_.value.address();
}

void Decoder::reserve_positions(int64_t positions) {
  const auto rounded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(positions)));
  const int64_t size = std::min(std::max<int64_t>(rounded, 256), config_.max_positions);
  if (rope_table_ && rope_table_.dim(0) >= size) {
    return;
  }
  const std::vector<float> host = rope_table(config_, size);
  retired_tables_.push_back(rope_table_);
  rope_table_ = backend_.allocate({size, config_.head_dim}, DType::f32);
  backend_.upload(std::as_bytes(std::span(host)), rope_table_);
}

}  // namespace wick
