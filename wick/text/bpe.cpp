// Byte-pair encoding: initial symbols, and two ways to merge them.
#include "wick/text/bpe.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "wick/base/error.h"
#include "wick/text/pretokenizer.h"
#include "wick/text/tokenizer_json.h"
#include "wick/text/unicode.h"
#include "wick/text/vocabulary.h"
#include "wick/text/word_cache.h"

namespace wick {

namespace {

constexpr std::string_view kMetaspace = "▁";
// Below this many symbols a scan for the best pair beats a heap.
constexpr size_t kShort = 48;

size_t hash_pair(int32_t left, int32_t right) {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const uint64_t hash = key * 0x9E3779B97F4A7C15U;
  return static_cast<size_t>(hash ^ hash >> 32);
}

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary, const MergeList& merges, Options options,
         const std::string& where)
    : vocabulary_(vocabulary), options_(std::move(options)) {
  if (!options_.unk_token.empty()) {
    unk_id_ = vocabulary_.find(options_.unk_token);
    check(unk_id_ >= 0, "{}: model: the unk_token \"{}\" is not in the vocabulary", where,
          options_.unk_token);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char raw = static_cast<char>(byte);
    byte_ids_[byte] =
        vocabulary_.find(options_.raw_bytes ? to_byte_characters(std::string_view(&raw, 1))
                                            : fmt::format("<0x{:02X}>", byte));
  }
  build_merges(merges, where);
}

void Bpe::build_merges(const MergeList& merges, const std::string& where) {
  size_t slots = 16;
  while (slots < merges.size() * 2) {
    slots *= 2;
  }
  merges_.assign(slots, Merge{});
  cuts_at_metaspace_ = !options_.raw_bytes && !options_.ignore_merges &&
                       options_.continuing_prefix.empty() && options_.word_suffix.empty() &&
                       vocabulary_.find(kMetaspace) >= 0;
  std::string text;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = merges.pair(rank);
    text.assign(left);
    text.append(right.starts_with(options_.continuing_prefix)
                    ? right.substr(options_.continuing_prefix.size())
                    : right);
    const Merge merge{vocabulary_.find(left), vocabulary_.find(right), static_cast<uint32_t>(rank),
                      vocabulary_.find(text)};
    check(merge.left >= 0 && merge.right >= 0 && merge.merged >= 0,
          "{}: model.merges[{}] (\"{}\" + \"{}\") needs \"{}\", which is not in the vocabulary",
          where, rank, left, right,
          merge.left < 0    ? left
          : merge.right < 0 ? right
                            : std::string_view(text));
    cuts_at_metaspace_ =
        cuts_at_metaspace_ && !(right.starts_with(kMetaspace) && !left.ends_with(kMetaspace));
    size_t slot = hash_pair(merge.left, merge.right) & (slots - 1);
    while (merges_[slot].left >= 0 &&
           (merges_[slot].left != merge.left || merges_[slot].right != merge.right)) {
      slot = (slot + 1) & (slots - 1);
    }
    merges_[slot] = merge;
  }
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const size_t mask = merges_.size() - 1;
  for (size_t slot = hash_pair(left, right) & mask;; slot = (slot + 1) & mask) {
    const Merge& merge = merges_[slot];
    if (merge.left == left && merge.right == right) {
      return &merge;
    }
    if (merge.left < 0) {
      return nullptr;
    }
  }
}

void Bpe::encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
  size_t begin = 0;
  while (begin < word.size()) {
    size_t end = word.size();
    if (cuts_at_metaspace_) {
      size_t text = begin;  // behind the marks that begin this part
      while (word.substr(text).starts_with(kMetaspace)) {
        text += kMetaspace.size();
      }
      end = std::min(word.find(kMetaspace, text), word.size());
    }
    const std::string_view part = word.substr(begin, end - begin);
    const uint64_t hash = hash_bytes(part);
    const std::span<const int32_t> known = cache.find(part, hash);
    if (known.data() != nullptr) {
      ids.insert(ids.end(), known.begin(), known.end());
    } else {
      const size_t first = ids.size();
      encode_uncached(part, ids);
      cache.add(part, hash, std::span<const int32_t>(ids).subspan(first));
    }
    begin = end;
  }
}

void Bpe::encode_uncached(std::string_view word, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const int32_t whole =
        vocabulary_.find(options_.raw_bytes ? to_byte_characters(word) : std::string(word));
    if (whole >= 0) {
      ids.push_back(whole);
      return;
    }
  }
  const size_t begin = ids.size();
  split_symbols(word, ids);
  if (ids.size() - begin <= kShort) {
    merge_short(ids, begin);
  } else {
    merge_long(ids, begin);
  }
}

bool Bpe::append_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  for (const char byte : character) {
    if (byte_ids_[static_cast<uint8_t>(byte)] < 0) {
      return false;
    }
  }
  for (const char byte : character) {
    ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  }
  return true;
}

void Bpe::split_symbols(std::string_view word, std::vector<int32_t>& ids) const {
  bool pending_unk = false;
  const auto flush_unk = [&] {
    if (pending_unk) {
      ids.push_back(unk_id_);
    }
    pending_unk = false;
  };
  std::string symbol;
  for (size_t i = 0; i < word.size();) {
    const size_t length = options_.raw_bytes ? 1 : unicode::decode_at(word, i).length;
    int32_t id = Vocabulary::kNone;
    symbol.assign(word, i, length);
    const bool plain = options_.continuing_prefix.empty() && options_.word_suffix.empty();
    if (options_.raw_bytes && plain) {
      id = byte_ids_[static_cast<uint8_t>(word[i])];
    } else {
      if (options_.raw_bytes) {
        symbol = to_byte_characters(symbol);
      }
      if (i > 0) {
        symbol.insert(0, options_.continuing_prefix);
      }
      if (i + length == word.size()) {
        symbol += options_.word_suffix;
      }
      id = vocabulary_.find(symbol);
    }
    i += length;
    if (id >= 0) {
      flush_unk();
      ids.push_back(id);
    } else if (options_.byte_fallback && !options_.raw_bytes && append_bytes(symbol, ids)) {
      // A pending unknown token stays pending, as in the reference.
    } else if (unk_id_ >= 0) {
      if (!options_.fuse_unk) {
        flush_unk();
      }
      pending_unk = true;
    }
  }
  flush_unk();
}

void Bpe::merge_short(std::vector<int32_t>& ids, size_t begin) const {
  // Each pair's merge is kept beside its left symbol, so a step looks up two pairs only.
  const Merge* pairs[kShort];
  int32_t* symbols = ids.data() + begin;
  size_t count = ids.size() - begin;
  for (size_t i = 0; i + 1 < count; ++i) {
    pairs[i] = find_merge(symbols[i], symbols[i + 1]);
  }
  while (count > 1) {
    size_t best = count;
    uint32_t best_rank = std::numeric_limits<uint32_t>::max();
    for (size_t i = 0; i + 1 < count; ++i) {
      if (pairs[i] != nullptr && pairs[i]->rank < best_rank) {
        best_rank = pairs[i]->rank;
        best = i;
      }
    }
    if (best == count) {
      break;
    }
    symbols[best] = pairs[best]->merged;
    std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
    if (best + 2 < count) {
      std::copy(pairs + best + 2, pairs + count - 1, pairs + best + 1);
    }
    --count;
    if (best > 0) {
      pairs[best - 1] = find_merge(symbols[best - 1], symbols[best]);
    }
    if (best + 1 < count) {
      pairs[best] = find_merge(symbols[best], symbols[best + 1]);
    }
  }
  ids.resize(begin + count);
}

void Bpe::merge_long(std::vector<int32_t>& ids, size_t begin) const {
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size() - begin);
  for (size_t i = begin; i < ids.size(); ++i) {
    const auto at = static_cast<int32_t>(i - begin);
    symbols.push_back({ids[i], at - 1, i + 1 < ids.size() ? at + 1 : -1});
  }
  // An entry is stale if the symbols at its place are no longer the pair it was made for.
  struct Candidate {
    uint32_t rank;
    int32_t left;
    const Merge* merge;
    bool operator<(const Candidate& other) const {  // the top of the heap is the lowest
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::priority_queue<Candidate> heap;
  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) {
      return;
    }
    if (const Merge* merge = find_merge(symbols[left].id, symbols[symbols[left].next].id)) {
      heap.push({merge->rank, left, merge});
    }
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i));
  }
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.left];
    if (left.id != top.merge->left || left.next < 0 || symbols[left.next].id != top.merge->right) {
      continue;
    }
    Symbol& right = symbols[left.next];
    right.id = -1;  // gone: matches no pair
    left.id = top.merge->merged;
    left.next = right.next;
    if (left.next >= 0) {
      symbols[left.next].previous = top.left;
    }
    consider(left.previous);
    consider(top.left);
  }
  ids.resize(begin);
  for (int32_t i = 0; i >= 0; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
}

}  // namespace wick
