// wick devices: what --device can choose from on this machine.
#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/output.h"
#include "wick/backend/registry.h"

namespace wick {

namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  wick devices\n"
    "      cpu     2 threads, AVX2\n"
    "      cuda:0  NVIDIA H200: 139.8 GiB, 139.2 GiB free; compute capability 9.0; driver 13.0,\n"
    "              runtime 13.0\n"
    "\n"
    "--device auto takes a GPU where there is one, and --device cuda the first; with mpirun, each\n"
    "process of a machine takes the next.\n";

void list_devices() {
  for (const DeviceDescription& device : describe_devices()) {
    print(fmt::format("{:<7} {}\n", device.name, device.text));
  }
}

}  // namespace

void add_devices(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("devices", "List the devices that --device can choose");
  verb->footer(kExamples);
  verb->callback(list_devices);
}

}  // namespace wick
