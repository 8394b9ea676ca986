// A small fixed hash of bytes: the same on every machine and in every release, so it may be
// written to files and may name streams of random numbers. Not for hostile input.
#pragma once

#include <cstdint>
#include <string_view>

namespace wick {

// FNV-1a, 64 bits (Fowler, Noll, Vo).
constexpr uint64_t fnv1a(std::string_view bytes) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3ULL;
  }
  return hash;
}

}  // namespace wick
