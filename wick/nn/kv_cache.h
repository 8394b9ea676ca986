// Keys and values of the tokens that a decoder has seen, so that the next token is one row of work.
//
// One sequence; row p of each layer's tensors belongs to position p. Rows at or past `length` are
// not yet written.
#pragma once

#include <cstdint>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

class KvCache {
 public:
  struct Layer {
    Tensor k;  // [capacity, G, D]
    Tensor v;
  };

  struct Sizes {
    int64_t layers, capacity, kv_heads, head_dim;
  };
  KvCache(Backend& backend, const Sizes& sizes, DType dtype);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }

  // Counts `tokens` more rows as written. Throws Error if they do not fit.
  void advance(int64_t tokens);
  // Forgets all rows from `length` on.
  void truncate(int64_t length);

 private:
  int64_t capacity_;
  int64_t length_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace wick
