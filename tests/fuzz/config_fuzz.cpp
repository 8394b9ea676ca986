// Any bytes as config.json: an Error or a config whose products of shapes cannot overflow.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "wick/base/error.h"
#include "wick/models/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const wick::ModelConfig c = wick::parse_model_config_text(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    int64_t bytes = 4;
    for (const int64_t extent : {c.num_heads, c.head_dim, c.hidden_size}) {
      if (extent <= 0 || __builtin_mul_overflow(bytes, extent, &bytes)) {
        std::abort();
      }
    }
    if (c.num_heads % c.num_kv_heads != 0 || c.head_dim % 2 != 0 ||
        (!c.windowed_layers.empty() &&
         c.windowed_layers.size() != static_cast<size_t>(c.num_layers))) {
      std::abort();
    }
  } catch (const wick::Error&) {
  }
  return 0;
}
