// Free lists by size for ordinary blocks, one mapped range for those of recorded work.
#include "wick/backend/cuda/memory.h"

#include <algorithm>
#include <cassert>

#include "wick/base/error.h"

namespace wick::cuda {

namespace {

constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kPage = size_t{2} << 20;  // of the device's memory

// Of recorded work that is gone: enough to decode with, so that the next text need not map it anew
// (a quarter of a millisecond).
constexpr size_t kSpareRecorded = size_t{64} << 20;

size_t rounded_up(size_t bytes, size_t step) {
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

size_t block_size(size_t bytes) {
  return rounded_up(bytes, bytes > kLarge ? kPage : Ranges::kAlignment);
}

// How large a free block may be to serve a request for `bytes`.
size_t largest_fit(size_t bytes) {
  return bytes + bytes / (bytes > kLarge ? 8 : 2);
}

double mib(size_t bytes) {
  return static_cast<double>(bytes) / 1048576.0;
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  return device;
}

}  // namespace

Scratch::Scratch(const Context& context, size_t bytes)
    : memory_(*context.memory), block_(memory_.take(bytes)) {}

Scratch::~Scratch() {
  memory_.give_back(block_);
}

DeviceMemory::DeviceMemory() : reserved_(current_device()) {
  size_t free_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &device_bytes_), "memory of the device");
}

DeviceMemory::~DeviceMemory() {
  release_unused();
}

void DeviceMemory::release_unused() {
  for (const auto& [bytes, blocks] : free_) {
    for (void* block : blocks) {
      cudaFree(block);  // waits for the work that uses it; a lost device has nothing to free
    }
  }
  free_.clear();
  if (!in_scope_ && cudaDeviceSynchronize() == cudaSuccess) {
    reserved_.shrink_to(kept_end_);
  }
}

Block DeviceMemory::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > device_bytes_) {
    fail_for(bytes);
  }
  Block block;
  if (in_scope_) {
    block = take_recorded(rounded_up(bytes, Ranges::kAlignment));
  } else {
    block.bytes = block_size(bytes);
    const size_t limit = largest_fit(block.bytes);
    auto found = free_.lower_bound(block.bytes);
    if (found != free_.end() && found->first <= limit) {
      block = {found->second.back(), found->first};
      found->second.pop_back();
      if (found->second.empty()) {
        free_.erase(found);
      }
    } else {
      block.address = from_device(block.bytes);
    }
  }
  use_.in_use_bytes += block.bytes;
  use_.peak_bytes = std::max(use_.peak_bytes, use_.in_use_bytes);
  return block;
}

Block DeviceMemory::take_recorded(size_t bytes) {
  const std::optional<size_t> offset = recorded_->take(bytes);
  if (!offset || !make_usable(*offset + bytes)) {
    if (offset) {
      recorded_->give_back(*offset, bytes);
    }
    check(mode_ == ScopeMode::running,
          "cuda: recorded work asks for more memory than when it was done first");
    fail_for(bytes);
  }
  scope_bytes_ += bytes;
  scope_peak_bytes_ = std::max(scope_peak_bytes_, scope_bytes_);
  scope_end_ = std::max(scope_end_, *offset + bytes);
  return {reserved_.address() + *offset, bytes, true};
}

bool DeviceMemory::make_usable(size_t recorded_bytes) {
  if (recorded_bytes <= reserved_.mapped()) {
    return true;
  }
  if (mode_ == ScopeMode::capturing) {
    return false;
  }
  if (!reserved_.grow_to(recorded_bytes)) {
    release_unused();
    return reserved_.grow_to(recorded_bytes);
  }
  return true;
}

void* DeviceMemory::from_device(size_t bytes) {
  void* address = nullptr;
  cudaError_t status = cudaMalloc(&address, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    release_unused();
    status = cudaMalloc(&address, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail_for(bytes);
  }
  check_cuda(status, "allocating memory");
  return address;
}

void DeviceMemory::fail_for(size_t bytes) const {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "free memory");
  fail(
      "out of memory: {:.1f} MiB asked for, {:.1f} MiB free of the device's {:.1f} MiB, {:.1f} MiB "
      "in use by tensors; a smaller --batch-tokens or --batch-size needs less",
      mib(bytes), mib(free_bytes), mib(total_bytes), mib(use_.in_use_bytes));
}

void DeviceMemory::give_back(const Block& block) {
  const std::lock_guard lock(mutex_);
  use_.in_use_bytes -= block.bytes;
  if (block.recorded) {
    const auto* address = static_cast<const std::byte*>(block.address);
    recorded_->give_back(static_cast<size_t>(address - reserved_.address()), block.bytes);
    scope_bytes_ -= block.bytes;
  } else {
    free_[block.bytes].push_back(block.address);
  }
}

MemoryUse DeviceMemory::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

void DeviceMemory::reset_peak() {
  const std::lock_guard lock(mutex_);
  use_.peak_bytes = use_.in_use_bytes;
}

bool DeviceMemory::can_record() {
  const std::lock_guard lock(mutex_);
  if (recorded_ == nullptr) {
    if (!reserved_.reserve(device_bytes_)) {
      return false;
    }
    recorded_ = std::make_unique<Ranges>(reserved_.capacity());
  }
  return true;
}

void DeviceMemory::begin_scope(ScopeMode mode) {
  const std::lock_guard lock(mutex_);
  assert(recorded_ != nullptr && !in_scope_ && recorded_->empty());
  in_scope_ = true;
  mode_ = mode;
  scope_peak_bytes_ = 0;
  scope_end_ = 0;
}

void DeviceMemory::keep_scope() {
  const std::lock_guard lock(mutex_);
  kept_end_ = std::max(kept_end_, scope_end_);
}

void DeviceMemory::end_scope() {
  const std::lock_guard lock(mutex_);
  assert(recorded_->empty() && "a tensor outlives the recorded work that allocated it");
  in_scope_ = false;
}

void DeviceMemory::note_replay(size_t scope_peak_bytes) {
  const std::lock_guard lock(mutex_);
  use_.peak_bytes = std::max(use_.peak_bytes, use_.in_use_bytes + scope_peak_bytes);
}

void DeviceMemory::forget_recorded() {
  const std::lock_guard lock(mutex_);
  assert(recorded_->empty());
  kept_end_ = 0;
  reserved_.shrink_to(kSpareRecorded);
}

}  // namespace wick::cuda
