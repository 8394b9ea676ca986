// The block's forward pass; its backward is what the ops record.
#include "wick/nn/decoder_block.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "wick/ops/attention.h"
#include "wick/ops/norm.h"

namespace wick {
namespace {

// One forward pass of one block.
class Run {
 public:
  Run(Backend& backend, Tape* tape, const DecoderBlock& block, const BlockShape& shape,
      const BlockInputs& inputs, const StepContext& context, const KvCache::Layer* cache)
      : backend_(backend),
        tape_(tape),
        block_(block),
        shape_(shape),
        inputs_(inputs),
        context_(context),
        cache_(cache) {}

  // o_proj(attention(..)) of the normed input, [T, C].
  Var attend(const Var& n) const {
    Heads heads = project(n);
    if (cache_ != nullptr) {
      backend_.rope_append(inputs_.positions, inputs_.rope_table, heads.q.value, heads.k.value,
                           heads.v.value, cache_->k, cache_->v);
      heads.k = Var{cache_->k};
      heads.v = Var{cache_->v};
    } else {
      const RopeInputs rotation{inputs_.positions, inputs_.rope_table};
      heads.q = rope(backend_, tape_, std::move(heads.q), rotation);
      heads.k = rope(backend_, tape_, std::move(heads.k), rotation);
    }
    const AttentionArgs args{
        .causal = true,
        .window = shape_.sliding_window,
        .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)))};
    const Var o = attention(backend_, tape_, heads.q, heads.k, heads.v, inputs_.spans, args);
    const Var flat = o.reshaped({o.value.dim(0), shape_.num_heads * shape_.head_dim});
    return linear(block_.o_proj, flat);
  }

  // down_proj(act(gate_proj(n)) * up_proj(n)), [T, C].
  Var feed_forward(const Var& n) const { return linear(block_.down_proj, gated(n)); }

 private:
  struct Heads {
    Var q, k, v;
  };

  Heads project(const Var& n) const {
    const std::array layers = {&block_.q_proj, &block_.k_proj, &block_.v_proj};
    const std::vector<Var> all = forward_group(backend_, tape_, n, layers, context_);
    Var q = split(all[0], shape_.num_heads);
    Var k = split(all[1], shape_.num_kv_heads);
    Var v = split(all[2], shape_.num_kv_heads);
    if (block_.q_norm) {
      q = rms_norm(backend_, tape_, q, *block_.q_norm, shape_.norm_eps);
    }
    if (block_.k_norm) {
      k = rms_norm(backend_, tape_, k, *block_.k_norm, shape_.norm_eps);
    }
    return {std::move(q), std::move(k), std::move(v)};
  }

  Var gated(const Var& n) const {
    const std::array layers = {&block_.gate_proj, &block_.up_proj};
    return forward_gated(backend_, tape_, n, layers, shape_.activation, context_);
  }

  Var linear(const LinearLayer& layer, const Var& x) const {
    return layer.forward(backend_, tape_, x, context_);
  }

  Var split(const Var& x, int64_t heads) const {
    return x.reshaped({x.value.dim(0), heads, shape_.head_dim});
  }

  Backend& backend_;
  Tape* tape_;
  const DecoderBlock& block_;
  const BlockShape& shape_;
  const BlockInputs& inputs_;
  const StepContext& context_;
  const KvCache::Layer* cache_;
};

}  // namespace

SumAndNorm norm_of(Backend& backend, Tape* tape, Stream stream, const Parameter& weight,
                   float eps) {
  if (stream.change.value) {
    return add_rms_norm(backend, tape, stream.x, std::move(stream.change), weight, eps);
  }
  const Var normed = rms_norm(backend, tape, stream.x, weight, eps);
  return {std::move(stream.x), normed};
}

Stream DecoderBlock::forward(Backend& backend, Tape* tape, Stream stream, const BlockShape& shape,
                             const BlockInputs& inputs, const StepContext& context,
                             const KvCache::Layer* cache) const {
  const Run run(backend, tape, *this, shape, inputs, context, cache);
  SumAndNorm first = norm_of(backend, tape, std::move(stream), input_norm, shape.norm_eps);
  Stream middle{std::move(first.sum), run.attend(first.normed)};
  first.normed = Var();
  SumAndNorm second = norm_of(backend, tape, std::move(middle), post_norm, shape.norm_eps);
  return {std::move(second.sum), run.feed_forward(second.normed)};
}

std::vector<LinearLayer*> DecoderBlock::linears() {
  return {&q_proj, &k_proj, &v_proj, &o_proj, &gate_proj, &up_proj, &down_proj};
}

std::vector<Parameter*> DecoderBlock::parameters() {
  std::vector<Parameter*> all = {&input_norm};
  for (LinearLayer* layer : linears()) {
    all.push_back(&layer->weight);
    if (layer->bias) {
      all.push_back(&*layer->bias);
    }
  }
  for (std::optional<Parameter>* norm : {&q_norm, &k_norm}) {
    if (*norm) {
      all.push_back(&**norm);
    }
  }
  all.push_back(&post_norm);
  return all;
}

bool DecoderBlock::trainable() const {
  const auto layers = {&q_proj, &k_proj, &v_proj, &o_proj, &gate_proj, &up_proj, &down_proj};
  const auto trains = [](const auto& norm) { return norm && norm->trainable(); };
  return input_norm.trainable() || post_norm.trainable() || trains(q_norm) || trains(k_norm) ||
         std::any_of(layers.begin(), layers.end(),
                     [](const LinearLayer* layer) { return layer->trainable(); });
}

}  // namespace wick
