// Regions of huge pages, cut into blocks; what a block leaves is for the next of its size.
#include "wick/backend/cpu/huge_page_arena.h"

#include <sys/mman.h>

#include <cstdlib>

namespace wick::cpu {

void* allocate_aligned(size_t bytes, size_t alignment) {
  void* address = nullptr;  // aligned_alloc would want whole multiples of the alignment
  if (posix_memalign(&address, alignment, bytes) != 0) {
    return nullptr;
  }
#ifdef MADV_HUGEPAGE
  if (alignment == HugePageArena::kHugePage) {
    ::madvise(address, bytes, MADV_HUGEPAGE);  // only advice: fewer faults and TLB misses
  }
#endif
  return address;
}

HugePageArena::~HugePageArena() {
  for (std::byte* region : regions_) {
    std::free(region);
  }
}

void* HugePageArena::take(size_t bytes) {
  if (const auto found = free_.find(bytes); found != free_.end() && !found->second.empty()) {
    void* address = found->second.back();
    found->second.pop_back();
    return address;
  }
  if (used_ + bytes > kRegionBytes) {
    auto* region = static_cast<std::byte*>(allocate_aligned(kRegionBytes, kHugePage));
    if (region == nullptr) {
      return nullptr;
    }
    regions_.push_back(region);
    used_ = 0;
  }
  void* address = regions_.back() + used_;
  used_ += bytes;
  return address;
}

void HugePageArena::give_back(void* address, size_t bytes) {
  ::madvise(address, bytes, MADV_DONTNEED);
  free_[bytes].push_back(address);
}

}  // namespace wick::cpu
