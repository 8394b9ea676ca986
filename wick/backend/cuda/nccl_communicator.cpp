// One all-reduce on the back end's stream, watched until it is done: a kernel of NCCL that waits
// for a lost process would wait for ever.
#include "wick/backend/cuda/nccl_communicator.h"

#include <cassert>
#include <chrono>
#include <exception>

namespace wick::cuda {

namespace {

void check_nccl(ncclResult_t status, const char* what) {
  if (status != ncclSuccess) [[unlikely]] {
    fail("nccl: {}: {}{}", what, ncclGetErrorString(status),
         status == ncclInvalidUsage ? "; each process needs a GPU of its own" : "");
  }
}

}  // namespace

NcclCommunicator::NcclCommunicator(Communicator& processes, CudaBackend& backend)
    : processes_(processes), stream_(backend.stream()) {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  summed_.reset(event);
  ncclUniqueId id{};
  if (place().rank == 0) {
    check_nccl(ncclGetUniqueId(&id), "start");
  }
  processes_.broadcast(std::as_writable_bytes(std::span(&id, 1)));
  check_nccl(ncclCommInitRank(&ranks_, place().size, id, place().rank), "start");
}

NcclCommunicator::~NcclCommunicator() {
  if (ranks_ == nullptr) {
    return;
  }
  // In good order all processes get here; else some may not, and nobody is waited for.
  if (std::uncaught_exceptions() == 0) {
    ncclCommDestroy(ranks_);
  } else {
    ncclCommAbort(ranks_);
  }
}

void NcclCommunicator::sum([[maybe_unused]] Backend& backend, Out tensor) {
  assert(tensor.dtype() == DType::f32);
  gather(0);  // all are well, so all take part
  summing_ = true;
  check_nccl(
      ncclAllReduce(tensor.address(), tensor.address(), static_cast<size_t>(tensor.elements()),
                    ncclFloat, ncclSum, ranks_, stream_),
      "sum");
  check_cuda(cudaEventRecord(summed_.get(), stream_), "sum");
  wait_for_sum();
  summing_ = false;
}

// The others may wait for a sum that never comes: they look out for processes that are gone.
void NcclCommunicator::tell_failure(const std::string& message) {
  if (!summing_) {
    processes_.tell_failure(message);
  }
}

void NcclCommunicator::wait_for_sum() {
  constexpr auto kLookEvery = std::chrono::milliseconds(5);
  auto looked = std::chrono::steady_clock::now();
  for (;;) {
    const cudaError_t status = cudaEventQuery(summed_.get());
    if (status == cudaSuccess) {
      return;
    }
    if (status != cudaErrorNotReady) {
      check_cuda(status, "sum");
    }
    const auto now = std::chrono::steady_clock::now();
    if (now - looked < kLookEvery) {
      continue;
    }
    looked = now;
    processes_.check_alive();
    ncclResult_t trouble = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(ranks_, &trouble), "sum");
    check_nccl(trouble, "sum");
  }
}

}  // namespace wick::cuda
