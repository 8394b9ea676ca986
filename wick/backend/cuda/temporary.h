// A tensor of a kernel's own.
#pragma once

#include <memory>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {

// A tensor over scratch memory.
class Temporary {
 public:
  Temporary(const Context& context, const Shape& shape, DType dtype)
      : scratch_(context, static_cast<size_t>(shape.elements()) * size_of(dtype)),
        tensor_(std::make_shared<Buffer>(scratch_.as<void>(),
                                         static_cast<size_t>(shape.elements()) * size_of(dtype),
                                         nullptr),
                0, shape, dtype) {}

  const Tensor& tensor() const { return tensor_; }

 private:
  Scratch scratch_;
  Tensor tensor_;
};

}  // namespace wick::cuda
