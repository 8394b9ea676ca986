// Size classes (four an octave) with a free list each.
#include "wick/backend/cpu/memory.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "wick/backend/cpu/system_memory.h"
#include "wick/base/error.h"

namespace wick::cpu {

namespace {

// Large arrays begin at a page. A load whose address ends in the 12 bits of a store just before it
// waits for that store. Loops that go through several arrays at one index never meet this where all
// begin alike; where each begins a line or two further on, as one after the other from the heap
// do, they meet it all the time.
constexpr size_t kPage = 4096;
constexpr size_t kAtPageFrom = 16 * kPage;

// Blocks of so many bytes have huge pages of their own, those from a sixteenth of a huge page on
// share them. Address sanitizers watch what comes from the heap alone.
constexpr size_t kOwnHugePagesFrom = 2 * HugePageArena::kHugePage;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kSharedHugePagesFrom = kOwnHugePagesFrom;
#else
constexpr size_t kSharedHugePagesFrom = HugePageArena::kHugePage / 16;
#endif

bool shares_huge_pages(size_t bytes) {
  return bytes >= kSharedHugePagesFrom && bytes < kOwnHugePagesFrom;
}

size_t alignment_of(size_t bytes) {
  if (bytes >= kOwnHugePagesFrom) {
    return HugePageArena::kHugePage;
  }
  return bytes >= kAtPageFrom ? kPage : BlockCache::kAlignment;
}

// The smallest block size of at least `bytes`.
size_t block_size(size_t bytes) {
  if (bytes <= 4 * BlockCache::kAlignment) {
    return 4 * BlockCache::kAlignment;
  }
  const size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

BlockCache::~BlockCache() {
  release_cached();
}

void BlockCache::release_cached() {
  for (auto& [size, blocks] : free_) {
    for (void* block : blocks) {
      to_system(block, size);
    }
  }
  free_.clear();
  cached_bytes_ = 0;
}

Block BlockCache::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  constexpr size_t kLargest = size_t{1} << 60;
  Block block{nullptr, bytes < kLargest ? block_size(bytes) : kLargest};
  const size_t most = fit_ == Fit::any ? kLargest : block.bytes + block.bytes / 2;
  for (auto found = free_.lower_bound(block.bytes); found != free_.end() && found->first <= most;
       ++found) {
    if (!found->second.empty()) {
      block = {found->second.back(), found->first};
      found->second.pop_back();
      cached_bytes_ -= block.bytes;
      break;
    }
  }
  if (block.address == nullptr) {
    block.address = from_system(block.bytes);
  }
  use_.in_use_bytes += block.bytes;
  use_.peak_bytes = std::max(use_.peak_bytes, use_.in_use_bytes);
  return block;
}

void* BlockCache::from_system(size_t bytes) {
  constexpr size_t kAskTheSystemFrom = size_t{64} << 20;
  const auto mib = [](size_t count) { return static_cast<double>(count) / 1048576.0; };
  if (bytes >= kAskTheSystemFrom && bytes > system_memory().available) {
    release_cached();
    const size_t available = system_memory().available;
    check(bytes <= available,
          "out of memory: {:.1f} MiB asked for, {:.1f} MiB free, {:.1f} MiB in use by tensors",
          mib(bytes), mib(available), mib(use_.in_use_bytes));
  }
  void* address =
      shares_huge_pages(bytes) ? arena_.take(bytes) : allocate_aligned(bytes, alignment_of(bytes));
  check(address != nullptr, "out of memory: {:.1f} MiB asked for, {:.1f} MiB in use by tensors",
        mib(bytes), mib(use_.in_use_bytes));
  return address;
}

void BlockCache::to_system(void* address, size_t bytes) {
  if (shares_huge_pages(bytes)) {
    arena_.give_back(address, bytes);
  } else {
    std::free(address);
  }
}

void BlockCache::give_back(const Block& block) {
  const std::lock_guard lock(mutex_);
  use_.in_use_bytes -= block.bytes;
  free_[block.bytes].push_back(block.address);
  cached_bytes_ += block.bytes;
  for (auto& [size, blocks] : free_) {
    for (; !blocks.empty() && cached_bytes_ + use_.in_use_bytes > use_.peak_bytes;
         blocks.pop_back()) {
      to_system(blocks.back(), size);
      cached_bytes_ -= size;
    }
  }
}

MemoryUse BlockCache::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

void BlockCache::reset_peak() {
  const std::lock_guard lock(mutex_);
  use_.peak_bytes = use_.in_use_bytes;
}

}  // namespace wick::cpu
