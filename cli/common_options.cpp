// Flags that several verbs share.
#include "cli/common_options.h"

#include "wick/base/error.h"
#include "wick/base/log.h"

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

void DeviceFlags::add_matmul_precision_to(CLI::App& verb) {
  matmul_precision = "auto";
  verb.add_option("--matmul-precision", matmul_precision,
                  "Products with bf16 weights: highest (f32 arithmetic), medium (the other side is "
                  "rounded to bf16, sums are f32), or auto (medium where the CPU has instructions "
                  "for bf16 products; on CUDA always medium)")
      ->check(CLI::IsMember({"auto", "highest", "medium"}))
      ->capture_default_str()
      ->group("Device");
}

std::unique_ptr<Backend> DeviceFlags::make(BackendOptions options) const {
  options.threads = threads;
  if (matmul_precision == "auto") {
    options.matmul_precision.reset();
  } else if (matmul_precision == "medium") {
    options.matmul_precision = MatmulPrecision::medium;
  }
  return make_backend(device, options);
}

void DeviceFlags::check_matmul_precision(const Backend& backend, MatmulPrecision precision) const {
  check(matmul_precision != "highest" || precision == MatmulPrecision::highest,
        "--matmul-precision highest: on {} the products of this model are of bf16 numbers; take "
        "medium or auto, or --device cpu",
        backend.name());
  if (matmul_precision != "medium") {
    return;
  }
  if (precision == MatmulPrecision::highest) {
    log_warning("--matmul-precision medium changes nothing: the model's weights are not bf16");
  } else if (backend.name() == "cpu" && fastest_matmul_precision() == MatmulPrecision::highest) {
    log_warning(
        "--matmul-precision medium: this CPU has no instructions for bf16 products; it rounds as "
        "if it had, and is slower than at highest");
  }
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
