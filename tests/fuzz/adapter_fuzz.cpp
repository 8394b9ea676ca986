// Any bytes as adapter_config.json: an Error, or a config that is the same once written and read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "wick/base/error.h"
#include "wick/lora/adapter_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const wick::AdapterConfig config = wick::parse_adapter_config(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    if (!(wick::parse_adapter_config(wick::format_adapter_config(config), "fuzz") == config)) {
      std::abort();
    }
    const wick::AdapterRules rules(config, "fuzz");
    const std::string_view module = "model.layers.1.self_attn.q_proj";
    rules.targets(module);
    if (rules.rank(module) < 1) {
      std::abort();
    }
  } catch (const wick::Error&) {
  }
  return 0;
}
