// The exit status that tells scripts what kind of error ended the program.
#pragma once

#include <exception>

#include "wick/base/error.h"

namespace wick {

inline constexpr int kFailed = 1;
inline constexpr int kWrongUsage = 2;
inline constexpr int kDeviceLost =
    3;  // another process may use the device, so starting again helps

inline int exit_status_of(const std::exception& error) {
  return dynamic_cast<const DeviceLost*>(&error) != nullptr ? kDeviceLost : kFailed;
}

}  // namespace wick
