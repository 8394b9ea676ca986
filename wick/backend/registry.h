// Makes back ends by name: the only place that knows the concrete ones.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

struct BackendOptions {
  int threads = 0;  // CPU: 0 takes one a core that this process may use
};

// What this build has, the best last.
std::vector<std::string_view> backend_names();

// "cpu", or "auto" (the best there is). Throws Error naming what this build has.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options = {});

}  // namespace wick
