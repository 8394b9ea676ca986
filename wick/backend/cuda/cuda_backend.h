// The back end for NVIDIA GPUs of compute capability 8.0 and newer: one device, one stream.
//
// Every kernel cuts its work by the shapes alone and adds in a fixed order, so a result has the
// same bits on every run on one kind of device. One thread at a time may call a back end, and
// always the thread's current device is the one that it was made on. Errors of kernels show at a
// later call.
#pragma once

#include <memory>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/matmul.h"
#include "wick/backend/cuda/memory.h"
#include "wick/backend/cuda/readback.h"
#include "wick/backend/cuda/row_program.h"
#include "wick/backend/cuda/staging.h"
#include "wick/core/backend.h"

namespace wick::cuda {

class CudaBackend final : public Backend {
 public:
  CudaBackend();  // of the current device; throws Error where none answers
  ~CudaBackend() override;
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string_view name() const override { return "cuda"; }

  cudaStream_t stream() const { return context_.stream; }  // where all its work goes

  DType activation_type(DType weights) const override;
  MatmulPrecision matmul_precision(DType weights) const override;
  DType weight_type(DType stored) const override;
  std::unique_ptr<Recorder> make_recorder() override;

  Tensor allocate(const Shape& shape, DType dtype) override;
  Tensor adopt(std::span<const std::byte> host, std::shared_ptr<const void> owner,
               const Shape& shape, DType dtype) override;
  void upload(std::span<const std::byte> host, Out to) override;
  void download(In from, std::span<std::byte> host) override;
  std::unique_ptr<Readback> make_readback(size_t bytes) override;
  void copy(In from, Out to) override;
  void synchronize() override;
  MemoryUse memory() const override;
  void reset_peak_memory() override;

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
  void gated_linears(In x, std::span<const LinearTerm> terms, Activation activation,
                     Out h) override;
  void normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) override;
  void normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> terms,
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
  void add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd) override;
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
  struct DropStream {
    void operator()(CUstream_st* stream) const { cudaStreamDestroy(stream); }
  };
  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };

  // For work that follows what waits (RowProgram), which goes into the stream first.
  const Context& ready() {
    rows_->flush();
    return context_;
  }

  Context context_;
  std::unique_ptr<CUstream_st, DropStream> stream_;
  // Tensors keep it alive, so they may outlive the back end.
  std::shared_ptr<DeviceMemory> memory_;
  std::unique_ptr<Staging> staging_;
  PinnedPlaces places_;  // of readbacks
  std::unique_ptr<MatmulPlans> plans_;
  std::unique_ptr<RowProgram> rows_;
  std::unique_ptr<void, Free> mailbox_;
  int recorders_ = 0;
};

}  // namespace wick::cuda
