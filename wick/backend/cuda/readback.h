// Downloads that the host takes later: the copy goes to pinned memory, and an event says when it is
// there.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "wick/core/backend.h"

namespace wick::cuda {

// Pinned memory, and the event that says when what was sent there has come.
struct PinnedPlace {
  struct Unpin {
    void operator()(std::byte* pinned) const { cudaFreeHost(pinned); }
  };
  struct DropEvent {
    void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
  };

  size_t bytes = 0;
  std::unique_ptr<std::byte, Unpin> memory;
  std::unique_ptr<CUevent_st, DropEvent> arrived;
};

// Places of readbacks that are gone, for those to come: to pin memory takes a millisecond, as long
// as two tokens of a small model.
class PinnedPlaces {
 public:
  PinnedPlace take(size_t bytes);
  void give_back(PinnedPlace place) { free_.push_back(std::move(place)); }

 private:
  std::vector<PinnedPlace> free_;
};

class PinnedReadback final : public Readback {
 public:
  // `places` must outlive it.
  PinnedReadback(cudaStream_t stream, PinnedPlaces& places, size_t bytes)
      : stream_(stream), places_(places), place_(places.take(bytes)) {}
  ~PinnedReadback() override;
  PinnedReadback(const PinnedReadback&) = delete;
  PinnedReadback& operator=(const PinnedReadback&) = delete;

  void begin(In from) override;
  void take(std::span<std::byte> host) override;
  bool runs_behind() const override { return true; }

 private:
  cudaStream_t stream_;
  PinnedPlaces& places_;
  PinnedPlace place_;
};

}  // namespace wick::cuda
