// Blocks shorter than some huge pages, side by side on huge pages.
//
// A weight of 1.6 MB alone would lie on 400 pages of 4 KiB, and reading it once, as a token does,
// would take 400 walks through the page tables and 400 new beginnings of the memory's foresight.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

namespace wick::cpu {

// Not safe from several threads.
class HugePageArena {
 public:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kRegionBytes = 32 * kHugePage;

  HugePageArena() = default;
  ~HugePageArena();
  HugePageArena(const HugePageArena&) = delete;
  HugePageArena& operator=(const HugePageArena&) = delete;

  // `bytes` (whole pages, at most kRegionBytes) of uninitialised memory that begins at a page; null
  // when there is not enough.
  void* take(size_t bytes);
  // The memory goes back to the system, the addresses stay for the next block of this size.
  void give_back(void* address, size_t bytes);

 private:
  std::vector<std::byte*> regions_;
  size_t used_ = kRegionBytes;                 // of the last region
  std::map<size_t, std::vector<void*>> free_;  // addresses by size
};

// Aligned to `alignment` (a power of two), from huge pages if whole ones fit in and the system has
// them; free() gives it back. Null when there is not enough.
void* allocate_aligned(size_t bytes, size_t alignment);

}  // namespace wick::cpu
