// Memory of the CPU back end, and the way from the seam to the kernels.
#include "wick/backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>

#include "wick/backend/cpu/adamw.h"
#include "wick/backend/cpu/attention.h"
#include "wick/backend/cpu/device.h"
#include "wick/backend/cpu/few_rows.h"
#include "wick/backend/cpu/lora.h"
#include "wick/backend/cpu/loss.h"
#include "wick/backend/cpu/matmul.h"
#include "wick/backend/cpu/norm.h"
#include "wick/backend/cpu/rowwise.h"
#include "wick/backend/cpu/sample.h"
#include "wick/backend/cpu/system_memory.h"
#include "wick/base/error.h"

namespace wick::cpu {

namespace {

size_t checked_bytes(const Shape& shape, DType dtype) {
  size_t bytes = size_of(dtype);
  bool fits = true;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    fits = fits && !__builtin_mul_overflow(bytes, static_cast<size_t>(shape[axis]), &bytes);
  }
  check(fits && bytes <= PTRDIFF_MAX, "allocate: {} {} does not fit into memory", name_of(dtype),
        shape.to_string());
  return bytes;
}

}  // namespace

CpuBackend::CpuBackend(const CpuOptions& options)
    : copy_adopted_(options.copy_adopted),
      pool_(options.threads),
      context_{pool_, scratch_, options.matmul_precision, has_bf16_products()} {}

MatmulPrecision CpuBackend::matmul_precision(DType weights) const {
  return weights == DType::bf16 ? context_.matmul_precision : MatmulPrecision::highest;
}

DType CpuBackend::adapter_type(DType weights) const {
  return matmul_precision(weights) == MatmulPrecision::medium ? DType::bf16 : DType::f32;
}

Tensor CpuBackend::allocate(const Shape& shape, DType dtype) {
  const size_t bytes = checked_bytes(shape, dtype);
  const Block block = tensors_->take(bytes);
  auto release = [cache = tensors_, block] { cache->give_back(block); };
  return Tensor(std::make_shared<Buffer>(block.address, bytes, std::move(release)), 0, shape,
                dtype);
}

// What is mapped may leave memory when others need it, copies may not: so copies end where the
// machine would get short of memory.
bool CpuBackend::has_room_to_copy(size_t bytes) const {
  const SystemMemory memory = system_memory();
  return memory.available >= bytes && memory.available - bytes >= memory.total / 4;
}

Tensor CpuBackend::adopt(std::span<const std::byte> host, std::shared_ptr<const void> owner,
                         const Shape& shape, DType dtype) {
  assert(host.size() == checked_bytes(shape, dtype));
  // Older writers of safetensors do not pad the header, so the data may lie at any address: kernels
  // may not read numbers there.
  const bool readable = reinterpret_cast<uintptr_t>(host.data()) % size_of(dtype) == 0;
  if (!readable || (copy_adopted_ && has_room_to_copy(host.size()))) {
    Tensor copied = allocate(shape, dtype);
    upload(host, copied);
    return copied;
  }
  // The contract forbids writing to what was adopted, so the address may lose its const.
  auto buffer = std::make_shared<Buffer>(const_cast<std::byte*>(host.data()), host.size(),
                                         [owner = std::move(owner)] {});
  return Tensor(std::move(buffer), 0, shape, dtype);
}

void CpuBackend::upload(std::span<const std::byte> host, Out to) {
  assert(host.size() == to.bytes());
  // Page by page the system clears what is new, which takes as long as the copy.
  constexpr size_t kPiece = size_t{4} << 20;
  const auto* from = host.data();
  auto* target = static_cast<std::byte*>(to.address());
  const size_t bytes = host.size();
  pool_.run(ceil_div(static_cast<int64_t>(bytes), static_cast<int64_t>(kPiece)), [=](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * kPiece;
    std::memcpy(target + begin, from + begin, std::min(kPiece, bytes - begin));
  });
}

void CpuBackend::download(In from, std::span<std::byte> host) {
  assert(host.size() == from.bytes());
  if (!host.empty()) {
    std::memcpy(host.data(), from.address(), host.size());
  }
}

void CpuBackend::copy(In from, Out to) {
  assert(from.bytes() == to.bytes());
  if (from.bytes() > 0) {
    std::memmove(to.address(), from.address(), from.bytes());
  }
}

MemoryUse CpuBackend::memory() const {
  return tensors_->use();
}

void CpuBackend::reset_peak_memory() {
  tensors_->reset_peak();
}

void CpuBackend::matmul(In a, In b, const MatmulArgs& args, Out c) {
  cpu::matmul(context_, a, b, args, c);
}

void CpuBackend::lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                              Out y) {
  cpu::lora_forward(context_, x, adapters, row_adapter, s, y);
}

void CpuBackend::lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                            Out y) {
  cpu::lora_delta(context_, x, adapters, row_adapter, s, y);
}

void CpuBackend::linears(In x, std::span<const LinearTerm> terms) {
  if (x.rows() == 0 || x.rows() > kFewRows) {
    Backend::linears(x, terms);
    return;
  }
  linears_few_rows(context_, x, terms);
}

void CpuBackend::lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da,
                               Out db, Out dx) {
  cpu::lora_backward(context_, x, s, dy, adapter, ds, da, db, dx);
}

void CpuBackend::add_column_sums(In x, Out out) {
  cpu::add_column_sums(context_, x, out);
}

void CpuBackend::attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o, Out lse) {
  cpu::attention(context_, q, k, v, spans, args, o, lse);
}

void CpuBackend::attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                                    const AttentionArgs& args, Out dq, Out dk, Out dv) {
  cpu::attention_backward(context_, {q, k, v, o, lse, d_o}, spans, args, dq, dk, dv);
}

void CpuBackend::kv_append(In x, In slots, Out cache) {
  cpu::kv_append(x, slots, cache);
}

void CpuBackend::rope(In x, In positions, In table, RopeDirection direction, Out y) {
  cpu::rope(context_, x, positions, table, direction, y);
}

void CpuBackend::rms_norm(In x, In weight, float eps, Out y, Out rstd) {
  cpu::rms_norm(context_, x, weight, eps, y, rstd);
}

void CpuBackend::rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                                   Out dweight) {
  cpu::rms_norm_backward(context_, {x, weight, rstd, dy}, accumulate, dx, dweight);
}

void CpuBackend::layer_norm(In x, In weight, In bias, float eps, Out y, Out mean_rstd) {
  cpu::layer_norm(context_, {x, weight, bias}, eps, y, mean_rstd);
}

void CpuBackend::layer_norm_backward(In x, In weight, In mean_rstd, In dy, bool accumulate, Out dx,
                                     Out dweight, Out dbias) {
  cpu::layer_norm_backward(context_, {x, weight, mean_rstd, dy}, accumulate, {dx, dweight, dbias});
}

void CpuBackend::softmax(In x, Out y) {
  cpu::softmax(context_, x, y);
}

void CpuBackend::gate(In g, In u, Activation activation, Out h) {
  cpu::gate(context_, g, u, activation, h);
}

void CpuBackend::gate_backward(In g, In u, In dh, Activation activation, Out dg, Out du) {
  cpu::gate_backward(context_, g, u, dh, activation, dg, du);
}

void CpuBackend::add(In a, In b, Out y) {
  cpu::add(context_, a, b, y);
}

void CpuBackend::fill(float value, Out y) {
  cpu::fill(context_, value, y);
}

void CpuBackend::cast(In x, Out y) {
  cpu::cast(context_, x, y);
}

void CpuBackend::dropout(In x, const DropoutArgs& args, Out y) {
  cpu::dropout(context_, x, args, y);
}

void CpuBackend::gather_rows(In table, In ids, Out y) {
  cpu::gather_rows(context_, table, ids, y);
}

void CpuBackend::scatter_add_rows(In x, In ids, Out table) {
  cpu::scatter_add_rows(context_, x, ids, table);
}

void CpuBackend::cross_entropy(In targets, const CrossEntropyArgs& args, Out logits, Out losses) {
  cpu::cross_entropy(context_, targets, args, logits, losses);
}

void CpuBackend::adamw(In grad, const AdamwArgs& args, Out p, Out m, Out v) {
  cpu::adamw(context_, grad, args, p, m, v);
}

void CpuBackend::sum_squares(In x, Out out) {
  cpu::sum_squares(context_, x, out);
}

void CpuBackend::sample(const SampleArgs& args, Out logits, Out id) {
  cpu::sample(context_, args, logits, id);
}

}  // namespace wick::cpu
