// The extents of a tensor: one to four dimensions, row-major, the last one contiguous.
#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace wick {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) {
    assert(extents.size() <= kMaxRank);
    for (const int64_t extent : extents) {
      assert(extent >= 0);
      extents_[rank_++] = extent;
    }
  }

  // From extents that are only known at run time: at most kMaxRank, none negative.
  static Shape of(std::span<const int64_t> extents) {
    assert(extents.size() <= kMaxRank);
    Shape shape;
    for (const int64_t extent : extents) {
      assert(extent >= 0);
      shape.extents_[shape.rank_++] = extent;
    }
    return shape;
  }

  int rank() const { return rank_; }
  int64_t operator[](int axis) const {
    assert(axis >= 0 && axis < rank_);
    return extents_[axis];
  }
  // The last extent; 1 for the empty shape.
  int64_t columns() const { return rank_ == 0 ? 1 : extents_[rank_ - 1]; }
  // The product of all extents but the last.
  int64_t rows() const {
    int64_t product = 1;
    for (int axis = 0; axis + 1 < rank_; ++axis) {
      product *= extents_[axis];
    }
    return product;
  }
  int64_t elements() const { return rows() * columns(); }

  // "[2, 16, 512]"
  std::string to_string() const;

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace wick
