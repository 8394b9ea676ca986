// What every CUDA kernel is given beside its tensors, and how its calls are checked.
//
// All work goes to one stream, in order. Memory that a kernel needs for itself comes from Scratch
// and may be handed to the next kernel as soon as the launch returns: the stream keeps them apart.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "wick/core/tensor.h"

namespace wick::cuda {

class DeviceMemory;
class MatmulPlans;

// For blocks of one kernel that wait for each other: words that hold a value and the number of the
// launch that it belongs to. One kernel at a time uses it.
struct Mailbox {
  static constexpr int kSlots = 8192;
  struct State {
    uint32_t launch;  // of the kernel that runs or comes next; at first not 0
    int left;         // blocks of it that are done here; 0 between kernels
  };
  uint64_t* slots = nullptr;
  State* state = nullptr;
};

struct Context {
  cudaStream_t stream = nullptr;
  DeviceMemory* memory = nullptr;
  MatmulPlans* plans = nullptr;  // of the dense products
  int multiprocessors = 0;
  // What kernels may count on, 90 for 9.0: the device's, or what they were compiled for if less.
  int compute_capability = 0;
  size_t shared_bytes = 0;  // that a block may opt into
  // Of a multiprocessor: its share of the memory's peak rate, at its highest clock.
  float memory_bytes_per_clock = 0;
  Mailbox mailbox;
};

// Throws Error naming `what` and the reason; DeviceLost where the device is gone.
void check_cuda(cudaError_t status, const char* what);
// After each launch: an error of the launch itself.
inline void check_launch(const char* kernel) {
  check_cuda(cudaGetLastError(), kernel);
}

struct Block {
  void* address = nullptr;
  size_t bytes = 0;       // at least what was asked for
  bool recorded = false;  // of the memory that recorded work shares (see DeviceMemory)
};

// Device memory of a kernel's own, 256-byte aligned, uninitialised.
class Scratch {
 public:
  Scratch(const Context& context, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(block_.address);
  }

 private:
  DeviceMemory& memory_;
  Block block_;
};

}  // namespace wick::cuda
