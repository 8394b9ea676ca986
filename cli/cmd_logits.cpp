// wick logits: what a model says of given token ids, for anyone who wants to compare.
#include <filesystem>
#include <memory>
#include <vector>

#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/open_model.h"
#include "wick/base/error.h"
#include "wick/base/log.h"
#include "wick/io/npy.h"
#include "wick/models/bundle.h"

namespace wick {

namespace {

struct LogitsFlags {
  ModelFlags model;
  DeviceFlags device;
  std::vector<int32_t> ids;
  std::filesystem::path output;
};

constexpr const char* kExamples =
    "Example:\n"
    "  wick logits --model base --adapter adapter --ids 1,2,3 --output logits.npy";

void run_logits(const LogitsFlags& flags) {
  const std::unique_ptr<Backend> backend = flags.device.make();
  const std::unique_ptr<Decoder> decoder = open_decoder(*backend, flags.model.model);
  const AttachedAdapter adapter = attach_adapter(*backend, decoder->linears(), flags.model);
  const ModelConfig& config = decoder->config();
  for (const int32_t id : flags.ids) {
    check(id >= 0 && id < config.vocab_size, "--ids: {} is not in the model's vocabulary of {}", id,
          config.vocab_size);
  }
  check(static_cast<int64_t>(flags.ids.size()) <= config.max_positions,
        "--ids: {} tokens exceed the model's context of {}", flags.ids.size(),
        config.max_positions);
  const TokenBatch batch = make_token_batch(*backend, std::span(&flags.ids, 1));
  const Tensor logits = decoder->logits(decoder->hidden(nullptr, batch, {}).value);
  std::vector<float> values(static_cast<size_t>(logits.elements()));
  backend->download(logits, std::as_writable_bytes(std::span(values)));
  write_npy(flags.output, logits.shape(), values);
  log_info("{}: {} f32", flags.output.string(), logits.shape().to_string());
}

}  // namespace

void add_logits(CLI::App& app) {
  CLI::App& verb =
      *app.add_subcommand("logits", "Write the logits after each of some token ids, as .npy");
  auto flags = std::make_shared<LogitsFlags>();
  flags->model.add_model_to(verb);
  flags->model.add_adapter_to(verb);
  verb.add_option("--ids", flags->ids, "Token ids, separated by commas: 1,2,3")
      ->delimiter(',')
      ->required();
  verb.add_option("--output", flags->output, "The .npy file: f32 [tokens, vocabulary]")->required();
  flags->device.add_to(verb);
  verb.footer(kExamples);
  verb.callback([flags] { run_logits(*flags); });
}

}  // namespace wick
