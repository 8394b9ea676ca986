// Runs one fuzz target over its seeds and over mutations of them, always the same ones, so that the
// ordinary test suite (and the sanitizers in it) covers what a fuzzer would try first.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "wick/base/file.h"
#include "wick/base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace wick {
namespace {

constexpr int kMutationsPerSeed = 300;
constexpr size_t kPrefixes = 200;
constexpr uint32_t kMaxEdits = 4;

// What tends to break parsers of lengths, numbers and brackets.
const std::vector<std::string> kPieces = {"0",
                                          "-1",
                                          "1e999",
                                          "18446744073709551615",
                                          "9223372036854775808",
                                          "0.5",
                                          "null",
                                          "[",
                                          "{",
                                          "]]",
                                          "}",
                                          "\"",
                                          "\\u0000",
                                          "\xFF",
                                          ",",
                                          ":",
                                          "[[[[[[[["};

class Mutator {
 public:
  Mutator(uint64_t seed, std::string text) : random_(seed, 0), text_(std::move(text)) {}

  std::string run() {
    const uint32_t edits = 1 + below(kMaxEdits);
    for (uint32_t i = 0; i < edits; ++i) {
      edit();
    }
    return text_;
  }

 private:
  uint32_t below(size_t bound) { return random_.below(index_++, static_cast<uint32_t>(bound)); }

  void edit() {
    const size_t at = below(text_.size() + 1);
    const size_t length = std::min<size_t>(1 + below(16), text_.size() - at);
    switch (below(6)) {
      case 0:
        if (at < text_.size()) {
          text_[at] = static_cast<char>(text_[at] ^ (1 << below(8)));
        }
        break;
      case 1:
        text_.erase(at, length);
        break;
      case 2:
        text_.insert(at, text_.substr(below(text_.size() + 1), 32));
        break;
      case 3:
        text_.insert(at, kPieces[below(kPieces.size())]);
        break;
      case 4:
        text_.replace(at, length, kPieces[below(kPieces.size())]);
        break;
      default:
        text_.resize(at);
        break;
    }
  }

  Random random_;
  uint64_t index_ = 0;
  std::string text_;
};

void feed(const std::string& text) {
  // A copy of the exact size, so that the address sanitizer sees a read beyond the end.
  const std::vector<uint8_t> exact(text.begin(), text.end());
  EXPECT_EQ(LLVMFuzzerTestOneInput(exact.data(), exact.size()), 0);
}

TEST(FuzzTarget, StandsItsSeedsAndTheirMutations) {
  size_t seeds = 0;
  for (const auto& entry : std::filesystem::directory_iterator(WICK_FUZZ_SEEDS)) {
    const std::string seed = read_text(entry.path());
    feed(seed);
    for (size_t length = 0; length < seed.size(); length += 1 + seed.size() / kPrefixes) {
      feed(seed.substr(0, length));
    }
    for (int i = 0; i < kMutationsPerSeed; ++i) {
      feed(Mutator(static_cast<uint64_t>(i), seed).run());
    }
    ++seeds;
  }
  EXPECT_GT(seeds, 0U);
}

}  // namespace
}  // namespace wick
