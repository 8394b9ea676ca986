// Kernels composed of others, the recorder of a back end that records nothing, and the readback of
// one that works while the host waits.
#include "wick/core/backend.h"

#include <algorithm>
#include <cassert>
#include <vector>

namespace wick {

namespace {

class DoAgain : public Recorder {
 public:
  void run(uint64_t, const std::function<void()>& work) override { work(); }
  bool replays() const override { return false; }
};

class DownloadAtOnce : public Readback {
 public:
  DownloadAtOnce(Backend& backend, size_t bytes) : backend_(backend), held_(bytes) {}
  void begin(In from) override {
    assert(from.bytes() <= held_.size());
    backend_.download(from, std::span(held_).first(from.bytes()));
  }
  void take(std::span<std::byte> host) override {
    assert(host.size() <= held_.size());
    std::copy_n(held_.begin(), host.size(), host.begin());
  }
  bool runs_behind() const override { return false; }

 private:
  Backend& backend_;
  std::vector<std::byte> held_;
};

}  // namespace

std::unique_ptr<Recorder> Backend::make_recorder() {
  return std::make_unique<DoAgain>();
}

void Backend::lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                         Out y) {
  fill(0.0F, y);
  lora_forward(x, adapters, row_adapter, s, y);
}

std::unique_ptr<Readback> Backend::make_readback(size_t bytes) {
  return std::make_unique<DownloadAtOnce>(*this, bytes);
}

void Backend::lora_linear_backward(const LoraLinearInputs& inputs, bool accumulate, Out ds, Out da,
                                   Out db, Out dx) {
  matmul(inputs.dy, inputs.weight, {.form = MatmulForm::nn, .accumulate = accumulate}, dx);
  lora_backward(inputs.x, inputs.s, inputs.dy, inputs.adapter, ds, da, db, dx);
}

void Backend::linears(In x, std::span<const LinearTerm> terms) {
  for (const LinearTerm& term : terms) {
    matmul(x, term.weight, {.bias = term.bias ? &term.bias : nullptr}, term.y);
    if (!term.adapters.empty()) {
      lora_forward(x, term.adapters, term.row_adapter, term.s, term.y);
    }
  }
}

void Backend::gated_linears(In x, std::span<const LinearTerm> g_and_u, Activation activation,
                            Out h) {
  linears(x, g_and_u);
  gate(g_and_u[0].y, g_and_u[1].y, activation, h);
}

namespace {

void norm(Backend& backend, const NormedInput& input) {
  if (input.b) {
    backend.add_rms_norm(input.a, input.b, input.weight, input.eps, input.sum, input.x, Tensor());
  } else {
    backend.rms_norm(input.a, input.weight, input.eps, input.x, Tensor());
  }
}

}  // namespace

void Backend::normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) {
  norm(*this, input);
  linears(input.x, terms);
}

void Backend::normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> g_and_u,
                                   Activation activation, Out h) {
  norm(*this, input);
  gated_linears(input.x, g_and_u, activation, h);
}

void Backend::append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache, In spans,
                               const AttentionArgs& args, Out o) {
  rope_append(tokens.positions, tokens.rope_table, tokens.q, tokens.k, tokens.v, k_cache, v_cache);
  attention(tokens.q, k_cache, v_cache, spans, args, o, Tensor());
}

void Backend::rope_append(In positions, In table, Out q, Out k, In v, Out k_cache, Out v_cache) {
  rope(q, positions, table, RopeDirection::forward, q);
  rope(k, positions, table, RopeDirection::forward, k);
  kv_append(k, positions, k_cache);
  kv_append(v, positions, v_cache);
}

void Backend::add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd) {
  add(a, b, sum);
  rms_norm(sum, weight, eps, y, rstd);
}

}  // namespace wick
