// The block's forward pass; its backward is what the ops record.
#include "wick/nn/decoder_block.h"

#include <algorithm>
#include <cmath>

#include "wick/ops/activation.h"
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

  // o_proj(attention(..)), [T, C].
  Var attend(const Var& x) const {
    Heads heads = project(x);
    if (cache_ != nullptr) {
      backend_.kv_append(heads.k.value, inputs_.positions, cache_->k);
      backend_.kv_append(heads.v.value, inputs_.positions, cache_->v);
      heads.k = Var{cache_->k};
      heads.v = Var{cache_->v};
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
  Var feed_forward(const Var& x) const { return linear(block_.down_proj, gated(x)); }

 private:
  struct Heads {
    Var q, k, v;
  };

  Heads project(const Var& x) const {
    const Var n = rms_norm(backend_, tape_, x, block_.input_norm, shape_.norm_eps);
    Var q = split(linear(block_.q_proj, n), shape_.num_heads);
    Var k = split(linear(block_.k_proj, n), shape_.num_kv_heads);
    Var v = split(linear(block_.v_proj, n), shape_.num_kv_heads);
    if (block_.q_norm) {
      q = rms_norm(backend_, tape_, q, *block_.q_norm, shape_.norm_eps);
    }
    if (block_.k_norm) {
      k = rms_norm(backend_, tape_, k, *block_.k_norm, shape_.norm_eps);
    }
    const RopeInputs rotation{inputs_.positions, inputs_.rope_table};
    q = rope(backend_, tape_, std::move(q), rotation);
    k = rope(backend_, tape_, std::move(k), rotation);
    return {std::move(q), std::move(k), std::move(v)};
  }

  Var gated(const Var& x) const {
    const Var n = rms_norm(backend_, tape_, x, block_.post_norm, shape_.norm_eps);
    const Var g = linear(block_.gate_proj, n);
    const Var u = linear(block_.up_proj, n);
    return gate(backend_, tape_, g, u, shape_.activation);
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

Var DecoderBlock::forward(Backend& backend, Tape* tape, const Var& x, const BlockShape& shape,
                          const BlockInputs& inputs, const StepContext& context,
                          const KvCache::Layer* cache) const {
  const Run run(backend, tape, *this, shape, inputs, context, cache);
  const Var middle = add(backend, tape, x, run.attend(x));
  return add(backend, tape, middle, run.feed_forward(middle));
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
