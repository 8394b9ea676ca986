// Places blocks in one long range of offsets: best fit, and neighbours that are free join again.
//
// Where a block goes depends on the calls since the range was last empty alone. Work that asks for
// the same sizes in the same order therefore gets the same offsets again.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace wick::cuda {

class Ranges {
 public:
  static constexpr size_t kAlignment = 512;

  explicit Ranges(size_t capacity);

  // The offset of a block of `bytes` (a positive multiple of kAlignment), or none where no free run
  // is long enough.
  std::optional<size_t> take(size_t bytes);
  void give_back(size_t offset, size_t bytes);
  bool empty() const;  // nothing is taken

 private:
  void add_free(size_t offset, size_t bytes);
  void remove_free(size_t offset, size_t bytes);

  size_t capacity_;
  std::map<size_t, size_t> free_at_;              // bytes by offset
  std::set<std::pair<size_t, size_t>> by_bytes_;  // (bytes, offset): best fit is the lower bound
};

}  // namespace wick::cuda
