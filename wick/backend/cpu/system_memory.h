// How much memory this process may still take.
#pragma once

#include <cstddef>

namespace wick::cpu {

struct SystemMemory {
  size_t total = 0;      // of the machine, or of the control group (container) if that has less
  size_t available = 0;  // without swapping, and without what the group may not take
};

SystemMemory system_memory();

}  // namespace wick::cpu
