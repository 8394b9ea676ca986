// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", 2011).
//
// A draw is a pure function of (seed, stream, index), so it is the same whatever thread asks, in
// whatever order, and after a resume. There is no state to save beyond the seed and the position.
#pragma once

#include <array>
#include <cstdint>

namespace wick {

class Random {
 public:
  // Streams with different ids are independent: give each purpose (initial weights, shuffle,
  // dropout, ...) its own.
  Random(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // Four 32-bit words for the block `index`.
  std::array<uint32_t, 4> block(uint64_t index) const;
  uint32_t bits(uint64_t index) const { return block(index >> 2)[index & 3]; }
  // In [0, 1), 24 bits.
  float uniform(uint64_t index) const {
    return static_cast<float>(bits(index) >> 8) * (1.0F / 16777216.0F);
  }
  // In [0, bound), unbiased to 2^-32 (Lemire's multiplication); bound > 0.
  uint32_t below(uint64_t index, uint32_t bound) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(bits(index)) * bound) >> 32);
  }
  // Standard normal by Box-Muller.
  float normal(uint64_t index) const;

  uint64_t seed() const { return seed_; }
  uint64_t stream() const { return stream_; }

 private:
  uint64_t seed_;
  uint64_t stream_;
};

// A stream of its own for each value of `step`: the first two words of that block.
uint64_t mask_stream(uint64_t seed, uint64_t stream, uint64_t step);

}  // namespace wick
