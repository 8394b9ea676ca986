// Copies between host memory of any kind and the device, by way of pinned memory.
//
// An upload returns when its bytes have been read, before they have arrived: work on the stream
// finds them there.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <memory>
#include <span>

namespace wick::cuda {

class Staging {
 public:
  explicit Staging(cudaStream_t stream);

  void upload(std::span<const std::byte> host, void* device);
  void download(const void* device, std::span<std::byte> host);  // waits for the stream

 private:
  static constexpr size_t kSlots = 4;
  static constexpr size_t kSlotBytes = size_t{4} << 20;

  struct Unpin {
    void operator()(std::byte* pinned) const { cudaFreeHost(pinned); }
  };
  struct DropEvent {
    void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
  };

  std::byte* slot() const { return pinned_.get() + slot_ * kSlotBytes; }
  void next_slot();

  cudaStream_t stream_;
  std::unique_ptr<std::byte, Unpin> pinned_;
  // Of each slot: all copies from it that were asked for are done.
  std::array<std::unique_ptr<CUevent_st, DropEvent>, kSlots> read_;
  size_t slot_ = 0;
  size_t filled_ = 0;  // bytes of the slot
};

}  // namespace wick::cuda
