// The streams of random numbers that data handling draws from, and a shuffle by them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "wick/base/random.h"

namespace wick {

namespace streams {
inline constexpr uint64_t kSplit = 0x53504C4954ULL << 24;    // "SPLIT"
inline constexpr uint64_t kShuffle = 0x4F52444552ULL << 24;  // "ORDER", plus the epoch
}  // namespace streams

// Fisher and Yates.
inline void shuffle(std::vector<uint32_t>& order, const Random& random) {
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(i, static_cast<uint32_t>(i))]);
  }
}

}  // namespace wick
