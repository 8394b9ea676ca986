// How a shape is shown in messages.
#include "wick/core/shape_format.h"

#include <algorithm>

namespace wick {

std::string Shape::to_string() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(extents_[axis]);
  }
  return text + "]";
}

}  // namespace wick

fmt::appender fmt::formatter<wick::Shape>::format(const wick::Shape& shape,
                                                  format_context& context) const {
  const std::string text = shape.to_string();
  return std::ranges::copy(text, context.out()).out;
}
