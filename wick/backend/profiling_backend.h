// A back end around another one: every kernel is awaited, timed and added to a profile.
//
// No kernel and no op knows of it, so it serves every back end alike. Awaiting each kernel keeps a
// device from running ahead: what is measured is the time of each kernel alone, and on a GPU a
// whole run takes longer than without the profile. The inner back end and the profile must outlive
// it, and tensors may outlive it.
#pragma once

#include "wick/backend/profile.h"
#include "wick/core/backend.h"

namespace wick {

class ProfilingBackend : public Backend {
 public:
  ProfilingBackend(Backend& inner, Profile& profile) : inner_(inner), profile_(profile) {}

  std::string_view name() const override { return inner_.name(); }
  DType activation_type(DType weights) const override { return inner_.activation_type(weights); }
  MatmulPrecision matmul_precision(DType weights) const override {
    return inner_.matmul_precision(weights);
  }
  DType weight_type(DType stored) const override { return inner_.weight_type(stored); }
  DType adapter_type(DType weights) const override { return inner_.adapter_type(weights); }

  Tensor allocate(const Shape& shape, DType dtype) override {
    return inner_.allocate(shape, dtype);
  }
  Tensor adopt(std::span<const std::byte> host, std::shared_ptr<const void> owner,
               const Shape& shape, DType dtype) override {
    return inner_.adopt(host, std::move(owner), shape, dtype);
  }
  void upload(std::span<const std::byte> host, Out to) override;
  void download(In from, std::span<std::byte> host) override;
  void copy(In from, Out to) override;
  void synchronize() override { inner_.synchronize(); }
  MemoryUse memory() const override { return inner_.memory(); }
  void reset_peak_memory() override { inner_.reset_peak_memory(); }

  void matmul(In a, In b, const MatmulArgs& args, Out c) override;
  void lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                    Out y) override;
  void lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                  Out y) override;
  void lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da, Out db,
                     Out dx) override;
  void lora_linear_backward(const LoraLinearInputs& inputs, bool accumulate, Out ds, Out da, Out db,
                            Out dx) override;
  void linears(In x, std::span<const LinearTerm> terms) override;
  void gated_linears(In x, std::span<const LinearTerm> g_and_u, Activation activation,
                     Out h) override;
  void normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) override;
  void normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> g_and_u,
                            Activation activation, Out h) override;
  void add_column_sums(In x, Out out) override;

  void attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o, Out lse) override;
  void attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                          const AttentionArgs& args, Out dq, Out dk, Out dv) override;
  void kv_append(In x, In slots, Out cache) override;
  void rope(In x, In positions, In table, RopeDirection direction, Out y) override;
  void rope_append(In positions, In table, Out q, Out k, In v, Out k_cache, Out v_cache) override;
  void append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache, In spans,
                        const AttentionArgs& args, Out o) override;

  void rms_norm(In x, In weight, float eps, Out y, Out rstd) override;
  void rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                         Out dweight) override;
  void add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd) override;
  void layer_norm(In x, In weight, In bias, float eps, Out y, Out mean_rstd) override;
  void layer_norm_backward(In x, In weight, In mean_rstd, In dy, bool accumulate, Out dx,
                           Out dweight, Out dbias) override;
  void softmax(In x, Out y) override;
  void gate(In g, In u, Activation activation, Out h) override;
  void gate_backward(In g, In u, In dh, Activation activation, Out dg, Out du) override;
  void add(In a, In b, Out y) override;
  void fill(float value, Out y) override;
  void cast(In x, Out y) override;
  void dropout(In x, const DropoutArgs& args, Out y) override;
  void gather_rows(In table, In ids, Out y) override;
  void scatter_add_rows(In x, In ids, Out table) override;

  void cross_entropy(In targets, const CrossEntropyArgs& args, Out logits, Out losses) override;
  void adamw(In grad, const AdamwArgs& args, Out p, Out m, Out v) override;
  void sum_squares(In x, Out out) override;

  void sample(const SampleArgs& args, Out logits, Out id) override;

 private:
  template <class Work>
  void timed(const char* kernel, const std::string& shape, const KernelCost& cost,
             const Work& work);
  // Pairs of a query and a key that it sees, over all spans.
  double visible_pairs(In spans, const AttentionArgs& args);

  Backend& inner_;
  Profile& profile_;
};

}  // namespace wick
