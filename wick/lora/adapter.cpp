// Whether an adapter does anything.
#include "wick/lora/adapter.h"

#include <algorithm>

namespace wick {

std::string Adapter::why_inert() const {
  const auto zero = [](const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return value == 0.0F; });
  };
  const AdapterRules rules(config, "adapter");
  const auto all = [&](auto&& property) {
    return std::all_of(entries.begin(), entries.end(), property);
  };
  if (entries.empty()) {
    return "it has no factors";
  }
  if (all([&](const AdapterEntry& entry) { return rules.scaling(entry.module) == 0.0F; })) {
    return "its alpha is 0";
  }
  if (all([&](const AdapterEntry& entry) { return zero(entry.b); })) {
    return "every B is zero, as before the first training step";
  }
  if (all([&](const AdapterEntry& entry) {
        return rules.scaling(entry.module) == 0.0F || zero(entry.a) || zero(entry.b);
      })) {
    return "every product of A and B is zero";
  }
  return {};
}

}  // namespace wick
