// Blocks of a launch, shared out to the linear layers that it computes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "wick/core/tensor.h"

namespace wick::cuda {

// blocks[i]: of a term of units[i], in proportion, none of them idle; no more than `most` in all
// where `most` is at least the number of terms. Returns their number.
inline int64_t share_blocks(std::span<const int64_t> units, int64_t most,
                            std::span<int64_t> blocks) {
  int64_t all = 0;
  for (const int64_t of_term : units) {
    all += of_term;
  }
  const auto share = [&](int64_t of_block) {
    int64_t sum = 0;
    for (size_t i = 0; i < units.size(); ++i) {
      blocks[i] = ceil_div(units[i], of_block);
      sum += blocks[i];
    }
    return sum;
  };
  int64_t of_block = ceil_div(all, most);
  int64_t shared = share(of_block);
  while (shared > most && of_block < all) {
    shared = share(++of_block);
  }
  int64_t spare = std::max<int64_t>(std::min(most, all) - shared, 0);
  for (size_t i = 0; i < units.size(); ++i) {
    const int64_t more = std::min(spare, units[i] - blocks[i]);
    blocks[i] += more;
    spare -= more;
    shared += more;
  }
  return shared;
}

}  // namespace wick::cuda
