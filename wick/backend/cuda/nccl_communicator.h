// Sums between GPUs of several processes, one GPU each, over NCCL; all else by the communicator
// underneath.
//
// NCCL adds in an order that the devices and their links fix: the sum has the same bits in every
// process, and on every run on one machine.
#pragma once

#include <nccl.h>

#include "wick/backend/cuda/cuda_backend.h"
#include "wick/core/communicator.h"

namespace wick::cuda {

class NcclCommunicator final : public Communicator {
 public:
  // Waits for all processes. Errors: two of them have the same device. What is passed must outlive
  // the object.
  NcclCommunicator(Communicator& processes, CudaBackend& backend);
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  const Place& place() const override { return processes_.place(); }
  std::vector<double> gather(double value) override { return processes_.gather(value); }
  void broadcast(std::span<std::byte> bytes) override { processes_.broadcast(bytes); }
  void sum(Backend& backend, Out tensor) override;
  void tell_failure(const std::string& message) override;
  bool speaks() const override { return processes_.speaks(); }
  void check_alive() override { processes_.check_alive(); }

 private:
  struct DropEvent {
    void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
  };

  void wait_for_sum();

  Communicator& processes_;
  cudaStream_t stream_;
  std::unique_ptr<CUevent_st, DropEvent> summed_;
  ncclComm_t ranks_ = nullptr;
  bool summing_ = false;
};

}  // namespace wick::cuda
