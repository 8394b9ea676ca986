// The one exception of the library, and the check that throws it.
//
// `wick::Error` is for what a caller, a file or a machine can cause; `assert` is for our own
// mistakes. A message names the operation, the thing and both values; for files the name and the
// offset or line:
//     check(a == b, "matmul: inner sizes differ: {} and {}", a, b);
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace wick {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// The device failed in a way that ends its use by this process: what its memory held is gone.
class DeviceLost : public Error {
 public:
  using Error::Error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]] {
    fail(format, std::forward<Args>(args)...);
  }
}

}  // namespace wick
