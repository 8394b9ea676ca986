// By NVTX, where the toolkit has its part about memory.
#include "wick/backend/cuda/store_marks.h"

#if __has_include(<nvtx3/nvToolsExtMemCudaRt.h>)

#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtMem.h>
#include <nvtx3/nvToolsExtMemCudaRt.h>

namespace wick::cuda {

StoreMarks::StoreMarks() : domain_(nvtxDomainCreateA("wick")) {}

StoreMarks::~StoreMarks() {
  nvtxDomainDestroy(domain_);
}

void StoreMarks::mark(cudaStream_t stream, const void* address, size_t bytes) const {
  nvtxMemVirtualRangeDesc_t range{};
  range.ptr = address;
  range.size = bytes;
  nvtxMemMarkInitializedBatch_t batch{};
  batch.extCompatID = NVTX_EXT_COMPATID_MEM;
  batch.structSize = sizeof(batch);
  batch.regionType = NVTX_MEM_TYPE_VIRTUAL_ADDRESS;
  batch.regionDescCount = 1;
  batch.regionDescElementSize = sizeof(range);
  batch.regionDescElements = &range;
  nvtxMemCudaMarkInitialized(domain_, stream, 0, &batch);
}

}  // namespace wick::cuda

#else

namespace wick::cuda {

StoreMarks::StoreMarks() = default;
StoreMarks::~StoreMarks() = default;
void StoreMarks::mark(cudaStream_t /*stream*/, const void* /*address*/, size_t /*bytes*/) const {}

}  // namespace wick::cuda

#endif
