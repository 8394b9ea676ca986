// An open-addressing hash table over one buffer of token strings.
#include "wick/text/vocabulary.h"

#include <cassert>
#include <cstring>

namespace wick {

uint64_t hash_bytes(std::string_view bytes) {
  // Eight bytes a step, multiplied and folded; only speed and an even spread are asked of it.
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15U;
  uint64_t hash = bytes.size() * kMultiplier;
  const auto mix = [&hash](uint64_t word) {
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 29;
  };
  const char* data = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; left -= 8, data += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data, 8);
    mix(word);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, data, left);
  mix(tail);
  return hash * kMultiplier ^ hash >> 32;
}

size_t Vocabulary::slot_of(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash_bytes(token) & mask;
  while (slots_[slot].id != kNone &&
         std::string_view(pool_).substr(slots_[slot].offset, slots_[slot].length) != token) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Vocabulary::grow() {
  const std::vector<Slot> old = std::move(slots_);
  slots_.assign(old.empty() ? 1024 : old.size() * 2, Slot{});
  for (const Slot& entry : old) {
    if (entry.id != kNone) {
      slots_[slot_of(std::string_view(pool_).substr(entry.offset, entry.length))] = entry;
    }
  }
}

void Vocabulary::add(std::string_view token, int32_t id) {
  assert(id >= 0 && id <= kMaxId);
  if (used_ * 2 >= slots_.size()) {
    grow();
  }
  Slot& slot = slots_[slot_of(token)];
  if (slot.id == kNone) {
    ++used_;
    slot.offset = pool_.size();
    slot.length = static_cast<uint32_t>(token.size());
    pool_.append(token);
  }
  slot.id = id;
  if (id >= size()) {
    spans_.resize(static_cast<size_t>(id) + 1);
  }
  spans_[id].offset = slot.offset;
  spans_[id].length = slot.length;
  spans_[id].present = 1;
}

int32_t Vocabulary::find(std::string_view token) const {
  return slots_.empty() ? kNone : slots_[slot_of(token)].id;
}

}  // namespace wick
