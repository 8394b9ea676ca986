// Any bytes as adapter_config.json: an Error, or a config that survives being written and read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "wick/base/error.h"
#include "wick/lora/adapter_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  wick::AdapterConfig config;
  try {
    config = wick::parse_adapter_config(text, "fuzz");
  } catch (const wick::Error&) {
    return 0;
  }
  if (config.rank <= 0 ||
      wick::parse_adapter_config(format_adapter_config(config), "again") != config) {
    std::abort();
  }
  try {
    const wick::AdapterRules rules(config, "fuzz");
    rules.targets("model.layers.0.self_attn.q_proj");
  } catch (const wick::Error&) {
  }
  return 0;
}
