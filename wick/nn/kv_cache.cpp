// Allocates the cache and counts its rows.
#include "wick/nn/kv_cache.h"

#include "wick/base/error.h"

namespace wick {

KvCache::KvCache(Backend& backend, const Sizes& sizes, DType dtype) : capacity_(sizes.capacity) {
  check(capacity_ > 0, "KV cache: the capacity must be positive, not {}", capacity_);
  layers_.reserve(static_cast<size_t>(sizes.layers));
  for (int64_t i = 0; i < sizes.layers; ++i) {
    const Shape shape{capacity_, sizes.kv_heads, sizes.head_dim};
    layers_.push_back({backend.allocate(shape, dtype), backend.allocate(shape, dtype)});
  }
}

void KvCache::advance(int64_t tokens) {
  check(length_ + tokens <= capacity_, "KV cache: {} tokens after {} exceed its capacity of {}",
        tokens, length_, capacity_);
  length_ += tokens;
}

void KvCache::truncate(int64_t length) {
  check(length >= 0 && length <= length_, "KV cache: cannot keep {} of {} tokens", length, length_);
  length_ = length;
}

}  // namespace wick
