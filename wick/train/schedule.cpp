// Decay curves.
#include "wick/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "wick/base/error.h"

namespace wick {

Decay decay_from_name(std::string_view name) {
  for (const Decay decay : {Decay::constant, Decay::linear, Decay::cosine}) {
    if (name == name_of(decay)) {
      return decay;
    }
  }
  fail("schedule: \"{}\" is unknown; there are constant, linear and cosine", name);
}

std::string_view name_of(Decay decay) {
  switch (decay) {
    case Decay::constant:
      return "constant";
    case Decay::linear:
      return "linear";
    case Decay::cosine:
      break;
  }
  return "cosine";
}

double Schedule::factor(int64_t step) const {
  if (step < warmup_steps) {
    return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  const auto span = static_cast<double>(std::max<int64_t>(total_steps - warmup_steps, 1));
  const double done = std::min(static_cast<double>(step - warmup_steps) / span, 1.0);
  switch (decay) {
    case Decay::constant:
      return 1.0;
    case Decay::linear:
      return floor + (1.0 - floor) * (1.0 - done);
    case Decay::cosine:
      break;
  }
  return floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace wick
