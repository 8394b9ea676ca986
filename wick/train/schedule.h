// The learning rate of each step: a linear warm-up, then constant, linear or cosine decay.
#pragma once

#include <cstdint>
#include <string_view>

namespace wick {

enum class Decay : uint8_t { constant, linear, cosine };

// "constant", "linear" or "cosine"; an error names these.
Decay decay_from_name(std::string_view name);
std::string_view name_of(Decay decay);

struct Schedule {
  Decay decay = Decay::cosine;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;
  double floor = 0;  // share of the peak that decay ends at

  // The share of the peak learning rate in step `step`, counted from 0. The first warm-up step has
  // 1 / warmup_steps, so no step is without effect.
  double factor(int64_t step) const;
};

}  // namespace wick
