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

constexpr size_t kSmallest = 4 * BlockCache::kAlignment;

// The number of the smallest block size of at least `bytes`, from 0.
size_t size_number(size_t bytes) {
  if (bytes <= kSmallest) {
    return 0;
  }
  // In octave (2^n, 2^(n + 1)] there are 5/4, 6/4, 7/4 and 8/4 of 2^n.
  const size_t octave = std::bit_width(bytes - 1) - std::bit_width(kSmallest);
  const size_t step = (kSmallest << octave) / 4;
  return 4 * octave + (bytes + step - 1) / step - 4;
}

size_t bytes_of(size_t size_number) {
  return size_number == 0
             ? kSmallest
             : ((kSmallest / 4) << ((size_number - 1) / 4)) * (5 + (size_number - 1) % 4);
}

}  // namespace

BlockCache::~BlockCache() {
  release_free(0);
}

size_t BlockCache::first_free(size_t first) const {
  for (size_t word = first / kWord; word < free_.sizes_there.size(); ++word) {
    const size_t skipped = word == first / kWord ? first % kWord : 0;
    const uint64_t there = free_.sizes_there[word] >> skipped << skipped;
    if (there != 0) {
      return word * kWord + std::countr_zero(there);
    }
  }
  return kSizes;
}

void* BlockCache::take_free(size_t size) {
  std::vector<void*>& blocks = free_.addresses[size];
  void* address = blocks.back();
  blocks.pop_back();
  if (blocks.empty()) {
    free_.sizes_there[size / kWord] &= ~(uint64_t{1} << size % kWord);
  }
  cached_bytes_ -= bytes_of(size);
  return address;
}

void BlockCache::release_free(size_t kept) {
  while (cached_bytes_ > kept) {
    const size_t size = first_free(0);
    to_system(take_free(size), bytes_of(size));
  }
}

Block BlockCache::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  constexpr size_t kLargest = size_t{1} << 60;
  const size_t size = size_number(std::min(bytes, kLargest));
  const size_t free = first_free(size);
  const size_t bytes_of_size = bytes_of(size);
  const size_t most = fit_ == Fit::any ? kLargest : bytes_of_size + bytes_of_size / 2;
  Block block{nullptr, bytes_of_size};
  if (free < kSizes && bytes_of(free) <= most) {
    block = {take_free(free), bytes_of(free)};
  } else {
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
    release_free(0);
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
  const size_t size = size_number(block.bytes);
  use_.in_use_bytes -= block.bytes;
  free_.addresses[size].push_back(block.address);
  free_.sizes_there[size / kWord] |= uint64_t{1} << size % kWord;
  cached_bytes_ += block.bytes;
  release_free(use_.peak_bytes - use_.in_use_bytes);
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
