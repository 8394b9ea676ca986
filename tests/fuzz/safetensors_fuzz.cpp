// Any bytes as a safetensors file: an Error, or a header whose every span lies in the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "wick/base/error.h"
#include "wick/io/safetensors_header.h"

namespace {

void parse(std::span<const std::byte> file) {
  try {
    const wick::SafetensorsHeader header = wick::parse_safetensors_header(file, "fuzz");
    for (const auto& [name, entry] : header.entries) {
      if (entry.begin > file.size() || entry.bytes > file.size() - entry.begin) {
        std::abort();
      }
    }
  } catch (const wick::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  parse(bytes);
  // Again with a length that fits, since few mutations keep it so: all but the last bytes, as many
  // as the first seed's tensors need, are the header.
  constexpr size_t kDataBytes = 12;
  if (size < sizeof(uint64_t) + kDataBytes) {
    return 0;
  }
  const uint64_t length = size - sizeof(uint64_t) - kDataBytes;
  std::vector<std::byte> repaired(bytes.begin(), bytes.end());
  std::memcpy(repaired.data(), &length, sizeof(length));
  parse(repaired);
  return 0;
}
