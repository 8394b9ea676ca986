// One copy and one event on the stream.
#include "wick/backend/cuda/readback.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/words.h"

namespace wick::cuda {

PinnedPlace PinnedPlaces::take(size_t bytes) {
  const auto found =
      std::ranges::find_if(free_, [&](const PinnedPlace& place) { return place.bytes >= bytes; });
  PinnedPlace place;
  if (found != free_.end()) {
    place = std::move(*found);
    free_.erase(found);
    return place;
  }
  void* pinned = nullptr;
  check_cuda(cudaMallocHost(&pinned, bytes), "pinning host memory");
  place.memory.reset(static_cast<std::byte*>(pinned));
  place.bytes = bytes;
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  place.arrived.reset(event);
  return place;
}

// A copy may still be on its way to the memory that goes.
PinnedReadback::~PinnedReadback() {
  cudaEventSynchronize(place_.arrived.get());
  places_.give_back(std::move(place_));
}

void PinnedReadback::begin(In from) {
  assert(from.bytes() <= place_.bytes);
  if (are_words(from.bytes(), from.address(), place_.memory.get())) {
    download_words(stream_, from.address(), from.bytes(), place_.memory.get());
  } else {
    check_cuda(cudaMemcpyAsync(place_.memory.get(), from.address(), from.bytes(),
                               cudaMemcpyDeviceToHost, stream_),
               "download");
  }
  check_cuda(cudaEventRecord(place_.arrived.get(), stream_), "download");
}

void PinnedReadback::take(std::span<std::byte> host) {
  assert(host.size() <= place_.bytes);
  check_cuda(cudaEventSynchronize(place_.arrived.get()), "download");
  std::memcpy(host.data(), place_.memory.get(), host.size());
}

}  // namespace wick::cuda
