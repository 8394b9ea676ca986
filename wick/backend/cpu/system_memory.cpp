// Linux: /proc/meminfo, and the limits of control groups as a container sees its own.
#include "wick/backend/cpu/system_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace wick::cpu {

namespace {

// The number after `name` in a file of lines "name number", or `missing`.
size_t number_after(const char* path, const std::string& name, size_t missing) {
  std::ifstream file(path);
  std::string word;
  size_t number = 0;
  while (file >> word) {
    if (word == name && file >> number) {
      return number;
    }
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return missing;
}

// The number that is all of a file; nothing else ("max" means no limit) and no file give `missing`.
size_t number_in(const char* path, size_t missing) {
  std::ifstream file(path);
  size_t number = 0;
  return file >> number ? number : missing;
}

}  // namespace

SystemMemory system_memory() {
  const auto pages = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES));
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  SystemMemory memory;
  memory.total = pages * page;
  const size_t kib = number_after("/proc/meminfo", "MemAvailable:", 0);
  memory.available = kib > 0 ? kib * 1024 : memory.total;

  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  const size_t limit = number_in("/sys/fs/cgroup/memory.max", kNone);
  if (limit < memory.total) {
    // What the group holds of files makes room when it is needed.
    const size_t held = number_in("/sys/fs/cgroup/memory.current", 0);
    const size_t files = number_after("/sys/fs/cgroup/memory.stat", "file", 0);
    const size_t kept = std::min(limit, held - std::min(held, files));
    memory.total = limit;
    memory.available = std::min(memory.available, limit - kept);
  }
  return memory;
}

}  // namespace wick::cpu
