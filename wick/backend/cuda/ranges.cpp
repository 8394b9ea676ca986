// Free runs, kept by offset and by size.
#include "wick/backend/cuda/ranges.h"

#include <cassert>
#include <iterator>

namespace wick::cuda {

Ranges::Ranges(size_t capacity) : capacity_(capacity / kAlignment * kAlignment) {
  add_free(0, capacity_);
}

void Ranges::add_free(size_t offset, size_t bytes) {
  free_at_.emplace(offset, bytes);
  by_bytes_.emplace(bytes, offset);
}

void Ranges::remove_free(size_t offset, size_t bytes) {
  free_at_.erase(offset);
  by_bytes_.erase({bytes, offset});
}

std::optional<size_t> Ranges::take(size_t bytes) {
  assert(bytes > 0 && bytes % kAlignment == 0);
  const auto found = by_bytes_.lower_bound({bytes, 0});
  if (found == by_bytes_.end()) {
    return std::nullopt;
  }
  const auto [run, offset] = *found;
  remove_free(offset, run);
  if (run > bytes) {
    add_free(offset + bytes, run - bytes);
  }
  return offset;
}

void Ranges::give_back(size_t offset, size_t bytes) {
  auto after = free_at_.lower_bound(offset);
  size_t begin = offset;
  size_t end = offset + bytes;
  assert(end <= capacity_ && (after == free_at_.end() || end <= after->first));
  if (after != free_at_.begin()) {
    const auto [before, run] = *std::prev(after);
    assert(before + run <= begin);
    if (before + run == begin) {
      begin = before;
      remove_free(before, run);
    }
  }
  after = free_at_.lower_bound(offset);
  if (after != free_at_.end() && after->first == end) {
    const auto [behind, run] = *after;
    end += run;
    remove_free(behind, run);
  }
  add_free(begin, end - begin);
}

bool Ranges::empty() const {
  return free_at_.size() == 1 && free_at_.begin()->second == capacity_;
}

}  // namespace wick::cuda
