// Views of tensors.
#include "wick/core/tensor.h"

namespace wick {

Tensor Tensor::slice(int64_t begin, int64_t count) const {
  assert(shape_.rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= shape_[0]);
  const int64_t stride = shape_[0] == 0 ? 0 : elements() / shape_[0];
  Shape shape;
  switch (shape_.rank()) {
    case 1:
      shape = {count};
      break;
    case 2:
      shape = {count, shape_[1]};
      break;
    case 3:
      shape = {count, shape_[1], shape_[2]};
      break;
    default:
      shape = {count, shape_[1], shape_[2], shape_[3]};
      break;
  }
  return part(begin * stride, shape);
}

}  // namespace wick
