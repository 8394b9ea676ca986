// Makes back ends by name: the only place that knows the concrete ones.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

struct BackendOptions {
  int threads = 0;  // CPU: 0 takes one a core that this process may use
};

// Those that this build has and this machine can use, the best last.
std::vector<std::string_view> backend_names();

// One of backend_names, or "auto" (the best there is). Throws Error naming what this build has, or
// why the device cannot be used.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options = {});

struct DeviceDescription {
  std::string_view backend;  // as make_backend takes it
  std::string text;          // what the device is, in one line
};

// Every device that this build can use on this machine.
std::vector<DeviceDescription> describe_devices();

}  // namespace wick
