// Philox4x32-10 and the distributions drawn from it.
#include "wick/base/random.h"

#include <cmath>

namespace wick {

std::array<uint32_t, 4> Random::block(uint64_t index) const {
  constexpr uint32_t kMul0 = 0xD2511F53;
  constexpr uint32_t kMul1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9;
  constexpr uint32_t kWeyl1 = 0xBB67AE85;
  std::array<uint32_t, 4> counter = {
      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
      static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  auto key0 = static_cast<uint32_t>(seed_);
  auto key1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kMul0) * counter[0];
    const uint64_t product1 = static_cast<uint64_t>(kMul1) * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

float Random::normal(uint64_t index) const {
  // One block a draw: two of its words make the pair that Box-Muller needs.
  const std::array<uint32_t, 4> words = block(index);
  const double u1 =
      (static_cast<double>(words[0]) + 1.0) / 4294967296.0;  // in (0, 1], so log is finite
  const double u2 = static_cast<double>(words[1]) / 4294967296.0;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586 * u2));
}

uint64_t mask_stream(uint64_t seed, uint64_t stream, uint64_t step) {
  const std::array<uint32_t, 4> words = Random(seed, stream).block(step);
  return static_cast<uint64_t>(words[0]) | static_cast<uint64_t>(words[1]) << 32;
}

}  // namespace wick
