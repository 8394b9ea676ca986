// What every CUDA kernel is given beside its tensors, and how its calls are checked.
//
// All work goes to one stream, in order. Memory that a kernel needs for itself comes from Scratch
// and may be handed to the next kernel as soon as the launch returns: the stream keeps them apart.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "wick/core/tensor.h"

namespace wick::cuda {

class DeviceMemory;
class MatmulPlans;

struct Context {
  cudaStream_t stream = nullptr;
  DeviceMemory* memory = nullptr;
  MatmulPlans* plans = nullptr;  // of the dense products
  int multiprocessors = 0;
  int compute_capability = 0;  // 90 for 9.0
  size_t shared_bytes = 0;     // that a block may opt into
  int* counters = nullptr;     // two, 0 between kernels: for blocks that wait for each other
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
