// Downloads that the host takes later: the copy goes to pinned memory, and an event says when it is
// there.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

#include "wick/core/backend.h"

namespace wick::cuda {

class PinnedReadback final : public Readback {
 public:
  PinnedReadback(cudaStream_t stream, size_t bytes);
  ~PinnedReadback() override;
  PinnedReadback(const PinnedReadback&) = delete;
  PinnedReadback& operator=(const PinnedReadback&) = delete;

  void begin(In from) override;
  void take(std::span<std::byte> host) override;
  bool runs_behind() const override { return true; }

 private:
  struct Unpin {
    void operator()(std::byte* pinned) const { cudaFreeHost(pinned); }
  };
  struct DropEvent {
    void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
  };

  cudaStream_t stream_;
  size_t bytes_;
  std::unique_ptr<std::byte, Unpin> pinned_;
  std::unique_ptr<CUevent_st, DropEvent> arrived_;
};

}  // namespace wick::cuda
