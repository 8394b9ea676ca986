// The back end for CPUs: f32 arithmetic (see MatmulPrecision), SIMD by Google Highway with run-time
// dispatch, one pool of threads.
//
// Every kernel cuts its work into tasks that own their outputs. Where a sum goes over several
// tasks, their sizes depend on the shapes alone. So the bits of a result do not depend on the
// number of threads. One thread at a time may call a back end.
#pragma once

#include <memory>

#include "wick/backend/cpu/context.h"
#include "wick/core/backend.h"

namespace wick::cpu {

struct CpuOptions {
  int threads = 0;  // 0: one a core that this process may use
  MatmulPrecision matmul_precision = MatmulPrecision::highest;
  bool copy_adopted = false;  // as of BackendOptions
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options);

  std::string_view name() const override { return "cpu"; }
  MatmulPrecision matmul_precision(DType weights) const override;
  DType adapter_type(DType weights) const override;

  Tensor allocate(const Shape& shape, DType dtype) override;
  Tensor adopt(std::span<const std::byte> host, std::shared_ptr<const void> owner,
               const Shape& shape, DType dtype) override;
  void upload(std::span<const std::byte> host, Out to) override;
  void download(In from, std::span<std::byte> host) override;
  void copy(In from, Out to) override;
  void synchronize() override {}
  MemoryUse memory() const override;
  void reset_peak_memory() override;

  void matmul(In a, In b, const MatmulArgs& args, Out c) override;
  void lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                    Out y) override;
  void lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                  Out y) override;
  void lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da, Out db,
                     Out dx) override;
  void linears(In x, std::span<const LinearTerm> terms) override;
  void add_column_sums(In x, Out out) override;

  void attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o, Out lse) override;
  void attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                          const AttentionArgs& args, Out dq, Out dk, Out dv) override;
  void kv_append(In x, In slots, Out cache) override;
  void rope(In x, In positions, In table, RopeDirection direction, Out y) override;

  void rms_norm(In x, In weight, float eps, Out y, Out rstd) override;
  void rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                         Out dweight) override;
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
  bool has_room_to_copy(size_t bytes) const;

  // Tensors keep the cache of their blocks alive, so they may outlive the back end.
  std::shared_ptr<BlockCache> tensors_ = std::make_shared<BlockCache>();
  BlockCache scratch_{BlockCache::Fit::any};
  const bool copy_adopted_;
  ThreadPool pool_;
  Context context_;
};

}  // namespace wick::cpu
