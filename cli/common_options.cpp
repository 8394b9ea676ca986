// Flags that several verbs share.
#include "cli/common_options.h"

#include "wick/backend/registry.h"

namespace wick {

void DeviceFlags::add_to(CLI::App& verb) {
  const char* group = "Device";
  verb.add_option(
          "--device", device,
          "Where to compute: auto (the best there is), cpu, cuda, or one GPU of several: cuda:1")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--threads", threads, "CPU threads; 0: one a core that this process may use")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str()
      ->group(group);
}

std::unique_ptr<Backend> DeviceFlags::make(const Place& place) const {
  return make_backend(device, {.threads = threads, .place = place});
}

void ModelFlags::add_model_to(CLI::App& verb) {
  verb.add_option("--model", model, "Model folder: config.json, tokenizer.json, *.safetensors")
      ->required();
}

void ModelFlags::add_adapter_to(CLI::App& verb) {
  verb.add_option("--adapter", adapter,
                  "Adapter folder: adapter_config.json, adapter_model.safetensors");
}

}  // namespace wick
