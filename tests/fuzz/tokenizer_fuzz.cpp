// Any bytes as tokenizer.json: an Error, or a tokenizer that encodes and decodes, or says why not.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "wick/base/error.h"
#include "wick/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const wick::Tokenizer tokenizer = wick::Tokenizer::from_json(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    tokenizer.decode(tokenizer.encode("The caf\u00e9 <s> 12 ab!", true), false);
  } catch (const wick::Error&) {
  }
  return 0;
}
