// The Python that tests compare with: the one that the environment variable WICK_PYTHON names, else
// that of `./run peft`, else python3.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace wick::test {

inline std::string python() {
  if (const char* set = std::getenv("WICK_PYTHON")) {
    return set;
  }
  const char* peers = WICK_SOURCE_DIR "/build/peers/torch/bin/python";
  return std::filesystem::exists(peers) ? peers : "python3";
}

inline bool python_has(const std::string& modules) {  // comma-separated
  return std::system((python() + " -c 'import " + modules + "' 2>/dev/null").c_str()) == 0;
}

}  // namespace wick::test
