// `wick merge`: a model with an adapter added into its weights.
#include <map>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/common_options.h"
#include "wick/base/log.h"
#include "wick/lora/attach.h"
#include "wick/lora/merge.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"

namespace wick {

namespace {

struct MergeFlags {
  ModelFlags model;
  DeviceFlags device;
  std::filesystem::path output;
  std::string dtype = "keep";
  bool overwrite = false;
};

const std::map<std::string, std::optional<DType>> kDTypes = {
    {"keep", std::nullopt}, {"f32", DType::f32}, {"bf16", DType::bf16}, {"f16", DType::f16}};

void merge(const MergeFlags& flags) {
  const Adapter adapter = read_peft(flags.model.adapter);
  const std::unique_ptr<Backend> backend = flags.device.make();
  const std::unique_ptr<Decoder> decoder =
      open_decoder(*backend, flags.model.model, {.held = HeldType::stored});
  if (const std::string warning = base_warning(adapter, flags.model.model); !warning.empty()) {
    log_warning("{}", warning);
  }
  const std::vector<LinearLayer*> layers = decoder->linears();
  const AttachedAdapter attached = attach(*backend, layers, adapter, Trainable::no);
  // Rounded once, to the type that is written.
  const DType dtype = kDTypes.at(flags.dtype).value_or(decoder->config().dtype);
  for (LinearLayer* layer : attached.layers) {
    merge_into(*backend, *layer, dtype);
  }
  save_model_folder(flags.output, flags.model.model, *decoder,
                    {.dtype = dtype, .overwrite = flags.overwrite});
  log_info("merged {} layers into {} ({})", attached.layers.size(), flags.output.string(),
           name_of(dtype));
}

}  // namespace

void add_merge(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("merge", "Write a model folder with an adapter merged in");
  const auto flags = std::make_shared<MergeFlags>();
  flags->model.add_model_to(*verb);
  flags->model.add_adapter_to(*verb);
  verb->get_option("--adapter")->required();
  verb->add_option("--output", flags->output, "Folder to write the merged model to")
      ->required()
      ->type_name("DIR");
  verb->add_option("--dtype", flags->dtype, "Number type of the weights written")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "f16"}))
      ->capture_default_str();
  verb->add_flag("--overwrite", flags->overwrite, "Replace a model that the output folder holds");
  flags->device.add_to(*verb);
  verb->footer(
      "Examples:\n"
      "  wick merge --model qwen2.5-0.5b --adapter adapter --output merged\n"
      "  wick merge --model base --adapter adapter --output merged --dtype f32 --overwrite");
  verb->callback([flags] { merge(*flags); });
}

}  // namespace wick
