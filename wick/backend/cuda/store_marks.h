// What compute-sanitizer is told of stores that it does not see.
//
// Its initcheck does not follow what a kernel stores through the tensor memory accelerator (its
// release notes, "Known limitations"), as cuBLASLt's do on compute capability 9.0, and would call
// every later read of such a product one of uninitialised memory. Source: Compute Sanitizer, "NVTX
// API", marking memory as initialised.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

struct nvtxDomainRegistration_st;

namespace wick::cuda {

class StoreMarks {
 public:
  StoreMarks();  // after the first call of the runtime
  ~StoreMarks();
  StoreMarks(const StoreMarks&) = delete;
  StoreMarks& operator=(const StoreMarks&) = delete;

  // Work that is in the stream now stores all of it. Where no tool listens this costs a look at a
  // pointer.
  void mark(cudaStream_t stream, const void* address, size_t bytes) const;

 private:
  nvtxDomainRegistration_st* domain_ = nullptr;
};

}  // namespace wick::cuda
