// The loss over the steps as a picture: one SVG file, no script, readable in light and dark.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace wick {

struct LossPoint {
  int64_t step = 0;
  double loss = 0;
};

// Either series may be empty; values that are not finite are left out.
std::string draw_loss_chart(std::span<const LossPoint> train, std::span<const LossPoint> valid);

}  // namespace wick
