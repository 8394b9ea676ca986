// A LoRA adapter in host memory: what every file format reads into and writes from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wick/lora/adapter_config.h"

namespace wick {

// The factors of one linear layer, row-major.
struct AdapterEntry {
  std::string module;  // Hugging Face module path, "model.layers.0.self_attn.q_proj"
  int64_t rank = 0;
  int64_t in = 0;
  int64_t out = 0;
  std::vector<float> a;  // [rank, in]
  std::vector<float> b;  // [out, rank]
};

struct Adapter {
  AdapterConfig config;
  std::vector<AdapterEntry> entries;
  // Of the base it was trained on, see base_config_hash in peft_io.h; empty: unknown.
  std::string base_hash;

  // Why the adapter leaves every output as it is ("every B is zero"); empty if it does not.
  std::string why_inert() const;
};

}  // namespace wick
