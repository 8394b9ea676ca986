// A contiguous, row-major array of up to four dimensions over a shared buffer.
//
// A Tensor is a handle: copies share the memory. It knows nothing of gradients (the tape does) and
// nothing of devices (the back end that allocated it does). An empty handle (`!tensor`) stands for
// "none".
#pragma once

#include <cassert>
#include <memory>
#include <utility>

#include "wick/core/buffer.h"
#include "wick/core/dtype.h"
#include "wick/core/shape.h"

namespace wick {

class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Buffer> buffer, size_t offset_bytes, const Shape& shape, DType dtype)
      : buffer_(std::move(buffer)), offset_bytes_(offset_bytes), shape_(shape), dtype_(dtype) {
    assert(offset_bytes_ + bytes() <= buffer_->bytes());
  }

  explicit operator bool() const { return buffer_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t rows() const { return shape_.rows(); }
  int64_t columns() const { return shape_.columns(); }
  int64_t elements() const { return shape_.elements(); }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype_); }

  // The address as the back end sees it.
  void* address() const { return static_cast<std::byte*>(buffer_->address()) + offset_bytes_; }
  template <class T>
  T* data() const {
    assert(sizeof(T) == size_of(dtype_));
    return static_cast<T*>(address());
  }

  // No other handle or view shares the memory, so an op may overwrite it in place.
  bool sole_owner() const { return buffer_.use_count() == 1; }

  // Views that share the memory.
  Tensor reshaped(const Shape& shape) const {
    assert(shape.elements() == elements());
    return Tensor(buffer_, offset_bytes_, shape, dtype_);
  }
  // Entries [begin, begin + count) along the first axis.
  Tensor slice(int64_t begin, int64_t count) const;
  // `shape.elements()` values from element `begin` on, whatever the shape of this tensor.
  Tensor part(int64_t begin, const Shape& shape) const {
    assert(begin >= 0 && begin + shape.elements() <= elements());
    return Tensor(buffer_, offset_bytes_ + static_cast<size_t>(begin) * size_of(dtype_), shape,
                  dtype_);
  }

 private:
  std::shared_ptr<Buffer> buffer_;
  size_t offset_bytes_ = 0;
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace wick
