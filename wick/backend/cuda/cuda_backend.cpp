// Memory of the CUDA back end, and the way from the seam to the kernels.
#include "wick/backend/cuda/cuda_backend.h"

#include <algorithm>
#include <cassert>
#include <cstdint>

#include "wick/backend/cuda/adamw.h"
#include "wick/backend/cuda/attention.h"
#include "wick/backend/cuda/compiled.h"
#include "wick/backend/cuda/device.h"
#include "wick/backend/cuda/linears_tiles.h"
#include "wick/backend/cuda/lora.h"
#include "wick/backend/cuda/lora_product.h"
#include "wick/backend/cuda/loss.h"
#include "wick/backend/cuda/recorder.h"
#include "wick/backend/cuda/rowwise.h"
#include "wick/backend/cuda/sample.h"
#include "wick/base/error.h"
#include "wick/core/shape_format.h"

namespace wick::cuda {

namespace {

size_t checked_bytes(const Shape& shape, DType dtype) {
  size_t bytes = size_of(dtype);
  bool fits = true;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    fits = fits && !__builtin_mul_overflow(bytes, static_cast<size_t>(shape[axis]), &bytes);
  }
  check(fits && bytes <= PTRDIFF_MAX, "allocate: {} {} does not fit into memory", name_of(dtype),
        shape);
  return bytes;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "attributes of the device");
  return value;
}

// Two transfers a clock of its memory.
float memory_bytes_per_clock(int device, int multiprocessors) {
  const auto rate = [&](cudaDeviceAttr which) {
    return static_cast<float>(std::max(attribute(which, device), 1));
  };
  return 2 * rate(cudaDevAttrMemoryClockRate) * rate(cudaDevAttrGlobalMemoryBusWidth) / 8 /
         rate(cudaDevAttrClockRate) / static_cast<float>(multiprocessors);
}

// Its memory; no slot holds a number that a launch will have soon.
void* make_mailbox(cudaStream_t stream, Mailbox& mailbox) {
  constexpr size_t kBytes = Mailbox::kSlots * sizeof(uint64_t) + sizeof(Mailbox::State);
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, kBytes), "memory for a mailbox");
  mailbox.slots = static_cast<uint64_t*>(memory);
  mailbox.state = reinterpret_cast<Mailbox::State*>(mailbox.slots + Mailbox::kSlots);
  const cudaError_t cleared = cudaMemsetAsync(memory, 0, kBytes, stream);
  const cudaError_t begun = cudaMemsetAsync(&mailbox.state->launch, 1, sizeof(uint32_t), stream);
  if (cleared != cudaSuccess || begun != cudaSuccess) {
    cudaFree(memory);
    check_cuda(cleared, "clearing a mailbox");
    check_cuda(begun, "clearing a mailbox");
  }
  return memory;
}

}  // namespace

CudaBackend::CudaBackend() {
  check(device_count() > 0, "cuda: no device answers: {}", reason_for_no_device());
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  check(major >= 8, "cuda: the device has compute capability {}.{}, and 8.0 is the least", major,
        minor);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  stream_.reset(stream);
  memory_ = std::make_shared<DeviceMemory>();
  context_.stream = stream;
  context_.memory = memory_.get();
  context_.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int compiled = compiled_capability();
  check(compiled > 0,
        "cuda: this build has no code for the device, of compute capability {}.{}: build with "
        "-DWICK_CUDA_ARCHITECTURES={}{}-real, or use --device cpu",
        major, minor, major, minor);
  context_.compute_capability = std::min(major * 10 + minor, compiled);
  context_.shared_bytes =
      static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  context_.memory_bytes_per_clock = memory_bytes_per_clock(device, context_.multiprocessors);
  mailbox_.reset(make_mailbox(stream, context_.mailbox));
  staging_ = std::make_unique<Staging>(stream);
  plans_ = std::make_unique<MatmulPlans>(context_);
  context_.plans = plans_.get();
  rows_ = std::make_unique<RowProgram>(context_);
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_.get());  // of a lost device there is nothing to wait for
}

DType CudaBackend::activation_type(DType weights) const {
  return weights == DType::f32 ? DType::f32 : DType::bf16;
}

// Where activations are bf16, so is what a product reads of them.
MatmulPrecision CudaBackend::matmul_precision(DType weights) const {
  return activation_type(weights) == DType::bf16 ? MatmulPrecision::medium
                                                 : MatmulPrecision::highest;
}

// f16 activations would overflow where models have large ones (65504 is the largest), and no
// product mixes bf16 with f16; so f16 weights become bf16, which loses three bits of each.
DType CudaBackend::weight_type(DType stored) const {
  return stored == DType::f16 ? DType::bf16 : stored;
}

std::unique_ptr<Recorder> CudaBackend::make_recorder() {
  if (!memory_->can_record()) {
    return Backend::make_recorder();
  }
  return std::make_unique<GraphRecorder>(context_, *rows_, recorders_);
}

Tensor CudaBackend::allocate(const Shape& shape, DType dtype) {
  const size_t bytes = checked_bytes(shape, dtype);
  const Block block = memory_->take(bytes);
  auto release = [memory = memory_, block] { memory->give_back(block); };
  return Tensor(std::make_shared<Buffer>(block.address, bytes, std::move(release)), 0, shape,
                dtype);
}

Tensor CudaBackend::adopt(std::span<const std::byte> host, std::shared_ptr<const void> /*owner*/,
                          const Shape& shape, DType dtype) {
  Tensor copied = allocate(shape, dtype);
  upload(host, copied);
  return copied;
}

void CudaBackend::upload(std::span<const std::byte> host, Out to) {
  assert(host.size() == to.bytes());
  ready();
  staging_->upload(host, to.address());
}

void CudaBackend::download(In from, std::span<std::byte> host) {
  assert(host.size() == from.bytes());
  ready();
  staging_->download(from.address(), host);
}

std::unique_ptr<Readback> CudaBackend::make_readback(size_t bytes) {
  return std::make_unique<PinnedReadback>(context_.stream, places_, bytes);
}

void CudaBackend::copy(In from, Out to) {
  assert(from.bytes() == to.bytes());
  if (from.bytes() > 0) {
    check_cuda(cudaMemcpyAsync(to.address(), from.address(), from.bytes(), cudaMemcpyDeviceToDevice,
                               ready().stream),
               "copy");
  }
}

void CudaBackend::synchronize() {
  check_cuda(cudaStreamSynchronize(ready().stream), "synchronize");
}

MemoryUse CudaBackend::memory() const {
  return memory_->use();
}

void CudaBackend::reset_peak_memory() {
  memory_->reset_peak();
}

void CudaBackend::matmul(In a, In b, const MatmulArgs& args, Out c) {
  cuda::matmul(ready(), a, b, args, c);
}

void CudaBackend::lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                               Out y) {
  cuda::lora_forward(ready(), x, adapters, row_adapter, s, y);
}

void CudaBackend::lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                             Out y) {
  cuda::lora_delta(ready(), x, adapters, row_adapter, s, y);
}

void CudaBackend::lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da,
                                Out db, Out dx) {
  cuda::lora_backward(ready(), x, s, dy, adapter, ds, da, db, dx);
}

void CudaBackend::lora_linear_backward(const LoraLinearInputs& inputs, bool accumulate, Out ds,
                                       Out da, Out db, Out dx) {
  if (!cuda::lora_linear_backward(ready(), inputs, accumulate, {ds, da, db, dx})) {
    Backend::lora_linear_backward(inputs, accumulate, ds, da, db, dx);
  }
}

// Few rows: one kernel; some tens of bf16: one kernel, some with a shrink ahead. Many rows of bf16:
// one kernel where that gains, else the change is added to a product in f32. Else the low-rank
// change comes first, so that the product adds to it and no pass over y follows it.
void CudaBackend::linears(In x, std::span<const LinearTerm> terms) {
  const int64_t T = x.rows();
  if (T == 0 || rows_->linears(x, terms) ||
      (T <= kFewRows && linears_few_rows(ready(), x, terms))) {
    return;
  }
  if (linears_in_tiles(ready(), x, terms)) {
    return;
  }
  std::vector<LinearTerm> onto_products;
  std::vector<LinearTerm> others;
  for (const LinearTerm& term : terms) {
    if (!lora_product_gains(ready(), x, term) || !lora_product(ready(), x, term)) {
      (takes_onto_product(ready(), x, term) ? onto_products : others).push_back(term);
    }
  }
  linears_onto_products(ready(), x, onto_products);
  for (const LinearTerm& term : others) {
    const bool adapted = !term.adapters.empty();
    if (adapted) {
      cuda::lora_delta(ready(), x, term.adapters, term.row_adapter, term.s, term.y);
    }
    const MatmulArgs args{.accumulate = adapted, .bias = term.bias ? &term.bias : nullptr};
    cuda::matmul(ready(), x, term.weight, args, term.y);
  }
}

void CudaBackend::gated_linears(In x, std::span<const LinearTerm> terms, Activation activation,
                                Out h) {
  if (!rows_->gated_linears(x, terms, activation, h) &&
      !gated_linears_row(ready(), x, terms, activation, h)) {
    Backend::gated_linears(x, terms, activation, h);
  }
}

void CudaBackend::normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) {
  if (!rows_->normed_linears(input, terms) && !normed_linears_row(ready(), input, terms)) {
    Backend::normed_linears(input, terms);
  }
}

void CudaBackend::normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> terms,
                                       Activation activation, Out h) {
  if (!rows_->normed_gated_linears(input, terms, activation, h) &&
      !normed_gated_linears_row(ready(), input, terms, activation, h)) {
    Backend::normed_gated_linears(input, terms, activation, h);
  }
}

void CudaBackend::add_column_sums(In x, Out out) {
  cuda::add_column_sums(ready(), x, out);
}

void CudaBackend::attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o, Out lse) {
  cuda::attention(ready(), q, k, v, spans, args, o, lse);
}

void CudaBackend::attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                                     const AttentionArgs& args, Out dq, Out dk, Out dv) {
  cuda::attention_backward(ready(), {q, k, v, o, lse, d_o}, spans, args, dq, dk, dv);
}

void CudaBackend::kv_append(In x, In slots, Out cache) {
  cuda::kv_append(ready(), x, slots, cache);
}

void CudaBackend::rope(In x, In positions, In table, RopeDirection direction, Out y) {
  cuda::rope(ready(), x, positions, table, direction, y);
}

void CudaBackend::rope_append(In positions, In table, Out q, Out k, In v, Out k_cache,
                              Out v_cache) {
  cuda::rope_append(ready(), positions, table, q, k, v, k_cache, v_cache);
}

void CudaBackend::append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache, In spans,
                                   const AttentionArgs& args, Out o) {
  if (!rows_->append_attention(tokens, k_cache, v_cache, spans, args, o)) {
    ready();
    Backend::append_attention(tokens, k_cache, v_cache, spans, args, o);
  }
}

void CudaBackend::rms_norm(In x, In weight, float eps, Out y, Out rstd) {
  cuda::rms_norm(ready(), x, weight, eps, y, rstd);
}

void CudaBackend::add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd) {
  cuda::add_rms_norm(ready(), a, b, weight, eps, sum, y, rstd);
}

void CudaBackend::rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                                    Out dweight) {
  cuda::rms_norm_backward(ready(), {x, weight, rstd, dy}, accumulate, dx, dweight);
}

void CudaBackend::layer_norm(In x, In weight, In bias, float eps, Out y, Out mean_rstd) {
  cuda::layer_norm(ready(), x, weight, bias, eps, y, mean_rstd);
}

void CudaBackend::layer_norm_backward(In x, In weight, In mean_rstd, In dy, bool accumulate, Out dx,
                                      Out dweight, Out dbias) {
  cuda::layer_norm_backward(ready(), {x, weight, mean_rstd, dy}, accumulate, dx, dweight, dbias);
}

void CudaBackend::softmax(In x, Out y) {
  cuda::softmax(ready(), x, y);
}

void CudaBackend::gate(In g, In u, Activation activation, Out h) {
  cuda::gate(ready(), g, u, activation, h);
}

void CudaBackend::gate_backward(In g, In u, In dh, Activation activation, Out dg, Out du) {
  cuda::gate_backward(ready(), g, u, dh, activation, dg, du);
}

void CudaBackend::add(In a, In b, Out y) {
  cuda::add(ready(), a, b, y);
}

void CudaBackend::fill(float value, Out y) {
  cuda::fill(ready(), value, y);
}

void CudaBackend::cast(In x, Out y) {
  cuda::cast(ready(), x, y);
}

void CudaBackend::dropout(In x, const DropoutArgs& args, Out y) {
  cuda::dropout(ready(), x, args, y);
}

void CudaBackend::gather_rows(In table, In ids, Out y) {
  cuda::gather_rows(ready(), table, ids, y);
}

void CudaBackend::scatter_add_rows(In x, In ids, Out table) {
  cuda::scatter_add_rows(ready(), x, ids, table);
}

void CudaBackend::cross_entropy(In targets, const CrossEntropyArgs& args, Out logits, Out losses) {
  cuda::cross_entropy(ready(), targets, args, logits, losses);
}

void CudaBackend::adamw(In grad, const AdamwArgs& args, Out p, Out m, Out v) {
  cuda::adamw(ready(), grad, args, p, m, v);
}

void CudaBackend::sum_squares(In x, Out out) {
  cuda::sum_squares(ready(), x, out);
}

void CudaBackend::sample(const SampleArgs& args, Out logits, Out id) {
  cuda::sample(ready(), args, logits, id);
}

}  // namespace wick::cuda
