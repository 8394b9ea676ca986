// An open-addressing table that is emptied when it is half full.
#include "wick/text/word_cache.h"

#include <algorithm>

namespace wick {

namespace {

constexpr size_t kFirstSlots = size_t{1} << 9;
constexpr size_t kMostSlots = size_t{1} << 16;
constexpr size_t kLongestWord = 256;

}  // namespace

WordCache::WordCache() : slots_(kFirstSlots, Slot{}) {}

std::span<const int32_t> WordCache::find(std::string_view word, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask; slots_[i].ids_count != 0; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.hash == hash &&
        std::string_view(text_.data() + slot.text_offset, slot.text_length) == word) {
      return {ids_.data() + slot.ids_offset, slot.ids_count};
    }
  }
  return {};
}

void WordCache::add(std::string_view word, uint64_t hash, std::span<const int32_t> ids) {
  if (word.size() > kLongestWord || ids.empty()) {
    return;
  }
  const auto free_slot = [&]() -> Slot& {
    const size_t mask = slots_.size() - 1;
    size_t i = hash & mask;
    while (slots_[i].ids_count != 0) {
      i = (i + 1) & mask;
    }
    return slots_[i];
  };
  if (used_ * 2 >= slots_.size()) {
    if (slots_.size() < kMostSlots) {
      const std::vector<Slot> old = std::move(slots_);
      slots_.assign(old.size() * 4, Slot{});
      for (const Slot& slot : old) {
        size_t i = slot.hash & (slots_.size() - 1);
        while (slot.ids_count != 0 && slots_[i].ids_count != 0) {
          i = (i + 1) & (slots_.size() - 1);
        }
        if (slot.ids_count != 0) {
          slots_[i] = slot;
        }
      }
    } else {
      std::fill(slots_.begin(), slots_.end(), Slot{});
      text_.clear();
      ids_.clear();
      used_ = 0;
    }
  }
  // Byte-fallback can give up to one id a byte, so the count fits the slot.
  free_slot() = {hash, static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(ids_.size()),
                 static_cast<uint16_t>(word.size()), static_cast<uint16_t>(ids.size())};
  text_.append(word);
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++used_;
}

}  // namespace wick
