// The ids of words met before: natural text repeats its words, and a look-up is some twenty times
// cheaper than merging. Bounded; not for use by two threads at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

class WordCache {
 public:
  WordCache();

  // The ids of the word, valid until the next `add`; null data if the word is not there.
  std::span<const int32_t> find(std::string_view word, uint64_t hash) const;
  // The word must not be there; words that are long or have no ids are not kept.
  void add(std::string_view word, uint64_t hash, std::span<const int32_t> ids);

 private:
  struct Slot {
    uint64_t hash;
    uint32_t text_offset;
    uint32_t ids_offset;
    uint16_t text_length;
    uint16_t ids_count;  // 0: free
  };
  std::vector<Slot> slots_;
  std::string text_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
};

}  // namespace wick
