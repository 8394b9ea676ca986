// Sums between GPUs of several processes, one GPU each, over NCCL; all else by the communicator
// underneath.
//
// NCCL adds in an order that the devices and their links fix: the sum has the same bits in every
// process, and on every run on one machine.
#pragma once

#include "wick/backend/cuda/cuda_backend.h"
#include "wick/backend/cuda/nccl_library.h"
#include "wick/core/communicator.h"

namespace wick::cuda {

class NcclCommunicator final : public Communicator {
 public:
  // Null where a process finds no NCCL. Waits for all. Errors: two processes have the same device.
  // What is passed must outlive the object.
  static std::unique_ptr<Communicator> make(Communicator& processes, CudaBackend& backend);
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

  NcclCommunicator(std::unique_ptr<const NcclLibrary> nccl, Communicator& processes,
                   CudaBackend& backend);
  void wait_for_sum();
  void check_nccl(ncclResult_t status, const char* what) const;

  std::unique_ptr<const NcclLibrary> nccl_;
  Communicator& processes_;
  cudaStream_t stream_;
  std::unique_ptr<CUevent_st, DropEvent> summed_;
  ncclComm_t ranks_ = nullptr;
  bool summing_ = false;
};

}  // namespace wick::cuda
