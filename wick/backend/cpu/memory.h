// The CPU back end's memory: aligned blocks, kept for reuse when they are given back.
//
// A training step asks for the same sizes as the step before; handing out the blocks of that step
// spares it the page faults. Safe from several threads.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "wick/backend/cpu/huge_page_arena.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

struct Block {
  void* address = nullptr;
  size_t bytes = 0;  // at least what was asked for
};

class BlockCache {
 public:
  static constexpr size_t kAlignment = 64;
  // Which free block serves a request: one of up to half as much again, or any that is large
  // enough, for what is needed for a moment only.
  enum class Fit : uint8_t { close, any };

  explicit BlockCache(Fit fit = Fit::close) : fit_(fit) {}
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // At least `bytes` of uninitialised memory. Throws Error when there is not enough.
  Block take(size_t bytes);
  // Keeps it for reuse. All that is kept never exceeds what was once needed at the same time;
  // beyond that the smallest blocks go back to the system, which hands them out again fastest.
  void give_back(const Block& block);

  MemoryUse use() const;  // in the sizes of the blocks
  void reset_peak();

 private:
  // Blocks come in kSizes sizes, four an octave; those that are free, by size. A token of decoding
  // asks for some hundred blocks between products whose weights have swept the caches: a search
  // through a tree would wait for memory at each node.
  static constexpr size_t kSizes = 256;
  static constexpr size_t kWord = 64;
  struct FreeBlocks {
    std::array<uint64_t, kSizes / kWord> sizes_there{};  // a bit a size
    std::array<std::vector<void*>, kSizes> addresses;
  };

  // The first size from `first` on of which there is a free block, or kSizes.
  size_t first_free(size_t first) const;
  void* take_free(size_t size);
  void* from_system(size_t bytes);
  void to_system(void* address, size_t bytes);
  // Gives the smallest free blocks back to the system until at most `kept` bytes are free.
  void release_free(size_t kept);

  const Fit fit_;
  mutable std::mutex mutex_;
  FreeBlocks free_;
  HugePageArena arena_;
  size_t cached_bytes_ = 0;
  MemoryUse use_;
};

// An array of `count` floats that lives as long as this object; none has no address.
class Scratch {
 public:
  Scratch(BlockCache& memory, size_t count)
      : memory_(memory), block_(count > 0 ? memory.take(count * sizeof(float)) : Block{}) {}
  ~Scratch() {
    if (block_.address != nullptr) {
      memory_.give_back(block_);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return static_cast<float*>(block_.address); }

 private:
  BlockCache& memory_;
  Block block_;
};

}  // namespace wick::cpu
