// How a shape is shown in messages.
#include "wick/core/shape.h"

namespace wick {

std::string Shape::to_string() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(extents_[axis]);
  }
  return text + "]";
}

}  // namespace wick
