// Any bytes as a line of JSONL: an Error or a record.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "wick/base/error.h"
#include "wick/data/records.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    wick::parse_record(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  } catch (const wick::Error&) {
  }
  return 0;
}
