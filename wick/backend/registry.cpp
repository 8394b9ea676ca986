// The concrete back ends by name.
#include "wick/backend/registry.h"

#include "wick/backend/cpu/cpu_backend.h"
#include "wick/base/error.h"

namespace wick {

std::vector<std::string_view> backend_names() {
  return {"cpu"};
}

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "cpu" || device == "auto") {
    return std::make_unique<cpu::CpuBackend>(options.threads);
  }
  fail("unknown device \"{}\": this build has cpu (and auto, the best there is)", device);
}

}  // namespace wick
