// The recorded models of tests/golden; its README says what is in them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "wick/io/safetensors.h"

namespace wick::test {

inline const std::vector<std::string> kGoldenFamilies = {"llama", "llama2", "mistral", "qwen2",
                                                         "qwen3"};

inline std::filesystem::path golden_folder(const std::string& family) {
  return std::filesystem::path(WICK_SOURCE_DIR) / "tests/golden" / family;
}

// The i32 values of a recorded tensor.
std::vector<int32_t> golden_ids(const SafetensorsFile& file, const std::string& name);

}  // namespace wick::test
