// Any bytes as tokenizer.json: an Error, or a tokenizer whose ids are its own and whose streamed
// text is its decoded text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "wick/base/error.h"
#include "wick/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const wick::Tokenizer tokenizer = wick::Tokenizer::from_json(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    for (const std::string_view text :
         {"ab abc  <end> caf\u00E9\n\n12 don't", " \u2581\u4E2D\U0001F600e\u0301 ", ""}) {
      const std::vector<int32_t> ids = tokenizer.encode(text, true);
      wick::StreamingDecoder stream(tokenizer, false);
      std::string streamed;
      for (const int32_t id : ids) {
        if (id < 0 || id >= tokenizer.vocab_size()) {
          std::abort();
        }
        streamed += stream.push(id);
      }
      if (streamed + stream.finish() != tokenizer.decode(ids, false)) {
        std::abort();
      }
    }
  } catch (const wick::Error&) {
  }
  return 0;
}
