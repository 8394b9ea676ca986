// Token strings and their ids, both ways.
//
// All strings lie in one buffer and the hash table holds ids only, so that a vocabulary of 150,000
// tokens loads in a few milliseconds. Ids need not be dense.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

uint64_t hash_bytes(std::string_view bytes);

class Vocabulary {
 public:
  static constexpr int32_t kNone = -1;
  // Larger ids are refused: a hostile file must not make us allocate by its numbers.
  static constexpr int64_t kMaxId = (int64_t{1} << 22) - 1;

  // A token that is there already gets the new id; an id that is taken gets the new token.
  // 0 <= id <= kMaxId.
  void add(std::string_view token, int32_t id);

  int32_t find(std::string_view token) const;
  bool has(int32_t id) const { return id >= 0 && id < size() && spans_[id].present; }
  // has(id) must hold.
  std::string_view text(int32_t id) const {
    return std::string_view(pool_).substr(spans_[id].offset, spans_[id].length);
  }
  // One more than the largest id.
  int32_t size() const { return static_cast<int32_t>(spans_.size()); }

 private:
  struct Span {
    uint64_t offset = 0;
    uint32_t length : 31 = 0;
    uint32_t present : 1 = 0;
  };
  void grow();
  // The slot that holds the token, or the free one where it belongs.
  size_t slot_of(std::string_view token) const;

  // A slot keeps its own copy of where the string lies: after a clash of ids the string found under
  // the id need not be the one that leads to it.
  struct Slot {
    uint64_t offset = 0;
    uint32_t length = 0;
    int32_t id = kNone;
  };
  std::string pool_;
  std::vector<Span> spans_;
  std::vector<Slot> slots_;
  size_t used_ = 0;
};

}  // namespace wick
