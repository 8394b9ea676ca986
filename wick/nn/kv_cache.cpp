// Allocates the cache and counts its rows.
#include "wick/nn/kv_cache.h"

#include "wick/base/error.h"

namespace wick {

KvCache::KvCache(Backend& backend, int64_t layers, int64_t capacity, int64_t kv_heads,
                 int64_t head_dim)
    : capacity_(capacity) {
  check(capacity > 0, "KV cache: the capacity must be positive, not {}", capacity);
  layers_.reserve(static_cast<size_t>(layers));
  for (int64_t i = 0; i < layers; ++i) {
    const Shape shape{capacity, kv_heads, head_dim};
    layers_.push_back({backend.allocate(shape, DType::f32), backend.allocate(shape, DType::f32)});
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
