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

  // o_proj(attention(..)) of the norm of the stream, [T, C]; x becomes the stream's sum.
  Var attend(Stream stream, Var& x) const {
    Heads heads = project(std::move(stream), x);
    const AttentionArgs args{
        .causal = true,
        .window = shape_.sliding_window,
        .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)))};
    Var o;
    if (cache_ != nullptr) {
      const FreshTokens tokens{inputs_.positions, inputs_.rope_table, heads.q.value, heads.k.value,
                               heads.v.value};
      o = append_attention(backend_, tokens, cache_->k, cache_->v, inputs_.spans, args);
    } else {
      const RopeInputs rotation{inputs_.positions, inputs_.rope_table};
      heads.q = rope(backend_, tape_, std::move(heads.q), rotation);
      heads.k = rope(backend_, tape_, std::move(heads.k), rotation);
      o = attention(backend_, tape_, heads.q, heads.k, heads.v, inputs_.spans, args);
    }
    const Var flat = o.reshaped({o.value.dim(0), shape_.num_heads * shape_.head_dim});
    return linear(block_.o_proj, flat);
  }

  // down_proj(act(gate_proj(n)) * up_proj(n)), n the norm of the stream, [T, C]; x becomes its sum.
  Var feed_forward(Stream stream, Var& x) const {
    return linear(block_.down_proj, gated(std::move(stream), x));
  }

 private:
  struct Heads {
    Var q, k, v;
  };

  Heads project(Stream stream, Var& x) const {
    const std::array layers = {&block_.q_proj, &block_.k_proj, &block_.v_proj};
    std::vector<Var> all;
    if (fuses_norms()) {
      const NormedInput input = normed_input(std::move(stream), block_.input_norm, x);
      all = forward_normed_group(backend_, input, layers);
    } else {
      const Var n = norm(std::move(stream), block_.input_norm, x);
      all = forward_group(backend_, tape_, n, layers, context_);
    }
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

  Var gated(Stream stream, Var& x) const {
    const std::array layers = {&block_.gate_proj, &block_.up_proj};
    if (fuses_norms()) {
      const NormedInput input = normed_input(std::move(stream), block_.post_norm, x);
      return forward_normed_gated(backend_, input, layers, shape_.activation);
    }
    const Var n = norm(std::move(stream), block_.post_norm, x);
    return forward_gated(backend_, tape_, n, layers, shape_.activation, context_);
  }

  // Where nothing is recorded or dropped, nobody else asks for the norms.
  bool fuses_norms() const { return tape_ == nullptr && !context_.training; }

  NormedInput normed_input(Stream stream, const Parameter& weight, Var& x) const {
    NormedInput input{.a = stream.x.value,
                      .b = stream.change.value,
                      .weight = weight.value,
                      .eps = shape_.norm_eps};
    const auto allocate = [&] { return backend_.allocate(input.a.shape(), input.a.dtype()); };
    input.x = allocate();
    if (input.b) {
      input.sum = allocate();
    }
    x = input.b ? Var{input.sum} : std::move(stream.x);
    return input;
  }

  Var norm(Stream stream, const Parameter& weight, Var& x) const {
    SumAndNorm both = norm_of(backend_, tape_, std::move(stream), weight, shape_.norm_eps);
    x = std::move(both.sum);
    return std::move(both.normed);
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
  Stream middle;
  middle.change = run.attend(std::move(stream), middle.x);
  Stream out;
  out.change = run.feed_forward(std::move(middle), out.x);
  return out;
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
