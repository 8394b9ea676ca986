// One copy and one event on the stream.
#include "wick/backend/cuda/readback.h"

#include <cassert>
#include <cstring>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/words.h"

namespace wick::cuda {

PinnedReadback::PinnedReadback(cudaStream_t stream, size_t bytes) : stream_(stream), bytes_(bytes) {
  void* pinned = nullptr;
  check_cuda(cudaMallocHost(&pinned, bytes), "pinning host memory");
  pinned_.reset(static_cast<std::byte*>(pinned));
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  arrived_.reset(event);
}

// A copy may still be on its way to the memory that goes.
PinnedReadback::~PinnedReadback() {
  cudaEventSynchronize(arrived_.get());
}

void PinnedReadback::begin(In from) {
  assert(from.bytes() <= bytes_);
  if (are_words(from.bytes(), from.address(), pinned_.get())) {
    download_words(stream_, from.address(), from.bytes(), pinned_.get());
  } else {
    check_cuda(cudaMemcpyAsync(pinned_.get(), from.address(), from.bytes(), cudaMemcpyDeviceToHost,
                               stream_),
               "download");
  }
  check_cuda(cudaEventRecord(arrived_.get(), stream_), "download");
}

void PinnedReadback::take(std::span<std::byte> host) {
  assert(host.size() <= bytes_);
  check_cuda(cudaEventSynchronize(arrived_.get()), "download");
  std::memcpy(host.data(), pinned_.get(), host.size());
}

}  // namespace wick::cuda
