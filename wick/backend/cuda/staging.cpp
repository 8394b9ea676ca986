// A ring of pinned slots that are filled in turn.
#include "wick/backend/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/words.h"

namespace wick::cuda {

namespace {

constexpr size_t kAlignment = 64;

}  // namespace

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  void* pinned = nullptr;
  check_cuda(cudaMallocHost(&pinned, kSlots * kSlotBytes), "pinning host memory");
  pinned_.reset(static_cast<std::byte*>(pinned));
  for (auto& event : read_) {
    cudaEvent_t made = nullptr;
    check_cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "making an event");
    event.reset(made);
  }
}

void Staging::next_slot() {
  check_cuda(cudaEventRecord(read_[slot_].get(), stream_), "upload");
  slot_ = (slot_ + 1) % kSlots;
  filled_ = 0;
  check_cuda(cudaEventSynchronize(read_[slot_].get()), "upload");
}

void Staging::upload(std::span<const std::byte> host, void* device) {
  auto* to = static_cast<std::byte*>(device);
  while (!host.empty()) {
    if (filled_ >= kSlotBytes) {
      next_slot();
    }
    const size_t count = std::min(host.size(), kSlotBytes - filled_);
    std::byte* from = slot() + filled_;
    std::memcpy(from, host.data(), count);
    check_cuda(cudaMemcpyAsync(to, from, count, cudaMemcpyHostToDevice, stream_), "upload");
    filled_ += (count + kAlignment - 1) / kAlignment * kAlignment;
    host = host.subspan(count);
    to += count;
  }
}

void Staging::download(const void* device, std::span<std::byte> host) {
  if (host.empty()) {
    return;
  }
  // What is small comes by pinned memory, which spares the driver's own staging.
  const bool small = host.size() <= kSlotBytes / 16;
  if (small && filled_ + host.size() > kSlotBytes) {
    next_slot();
  }
  std::byte* to = small ? slot() + filled_ : host.data();
  if (small && are_words(host.size(), device, to)) {
    download_words(stream_, device, host.size(), to);
  } else {
    check_cuda(cudaMemcpyAsync(to, device, host.size(), cudaMemcpyDeviceToHost, stream_),
               "download");
  }
  check_cuda(cudaStreamSynchronize(stream_), "download");
  if (small) {
    std::memcpy(host.data(), to, host.size());
  }
}

}  // namespace wick::cuda
