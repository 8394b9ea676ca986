// --profile: time a kernel, as a table and as a trace.
#include "cli/profile_option.h"

#include "cli/output.h"
#include "wick/backend/profiling_backend.h"
#include "wick/base/log.h"

namespace wick {

void ProfileFlags::add_to(CLI::App& verb) {
  verb.add_flag("--profile{profile.json}", file,
                "Print time a kernel, and write a trace for chrome://tracing or Perfetto to "
                "profile.json, or to FILE with --profile=FILE");
}

ProfiledDevice::ProfiledDevice(std::unique_ptr<Backend> backend, ProfileFlags flags)
    : flags_(std::move(flags)), inner_(std::move(backend)) {
  if (!flags_.file.empty()) {
    profiling_ = std::make_unique<ProfilingBackend>(*inner_, profile_);
  }
}

ProfiledDevice::~ProfiledDevice() = default;

Backend& ProfiledDevice::backend() {
  return profiling_ ? *profiling_ : *inner_;
}

void ProfiledDevice::start() {
  profile_.resume();
}

void ProfiledDevice::report() {
  profile_.pause();
  if (profiling_) {
    print(profile_.table());
    profile_.write_trace(flags_.file);
    log_info("{}: the trace; open it in chrome://tracing or ui.perfetto.dev", flags_.file);
  }
}

}  // namespace wick
