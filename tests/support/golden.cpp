// Reading recorded values.
#include "tests/support/golden.h"

#include <cstring>

namespace wick::test {

std::vector<int32_t> golden_ids(const SafetensorsFile& file, const std::string& name) {
  const std::span<const std::byte> bytes = file.bytes(name);
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), bytes.size());
  return ids;
}

}  // namespace wick::test
