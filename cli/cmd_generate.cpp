// wick generate: continues a prompt and shows the text as it comes.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/open_model.h"
#include "cli/output.h"
#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/log.h"
#include "wick/infer/generator.h"
#include "wick/models/bundle.h"

namespace wick {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kDefaultMaxTokens = 256;

struct GenerateFlags {
  ModelFlags model;
  DeviceFlags device;
  std::string prompt;
  fs::path prompt_file;
  CLI::Option* prompt_given = nullptr;
  CLI::Option* max_tokens_given = nullptr;
  GenerateOptions options;
};

void add_sampling_flags(CLI::App& verb, SamplingOptions& sampling) {
  const char* group = "Sampling";
  verb.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--top-k", sampling.top_k, "Draw from the K most likely tokens; 0: from all")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--top-p", sampling.top_p,
                  "Draw from the fewest tokens whose probabilities reach P")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--repetition-penalty", sampling.repetition_penalty,
                  "Above 1: what was seen becomes less likely")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--seed", sampling.seed, "The same seed gives the same text")
      ->capture_default_str()
      ->group(group);
}

std::string read_prompt(const GenerateFlags& flags) {
  if (flags.prompt_given->count() > 0) {
    return flags.prompt;
  }
  check(!flags.prompt_file.empty(),
        "no prompt: give --prompt TEXT, or --prompt-file FILE (- reads standard input)");
  if (flags.prompt_file == "-") {
    return std::string(std::istreambuf_iterator<char>(std::cin), {});
  }
  return read_text(flags.prompt_file);
}

// Without --max-tokens, as many as there is room for, up to a default.
int64_t max_tokens(const GenerateFlags& flags, const Bundle& bundle, const std::string& prompt) {
  if (flags.max_tokens_given->count() > 0) {
    return flags.options.max_tokens;
  }
  const auto used = static_cast<int64_t>(encode_prompt(bundle.tokenizer, prompt).size());
  return std::clamp<int64_t>(bundle.config.max_positions - used, 1, kDefaultMaxTokens);
}

void tell_speed(const Generation& done) {
  const auto decoded = static_cast<double>(done.ids.size());
  const auto rate = [](double tokens, double seconds) {
    return seconds > 0 ? tokens / seconds : 0;
  };
  log_info("prompt {} tokens, {:.1f} tok/s; generated {} tokens, {:.1f} tok/s", done.prompt_tokens,
           rate(static_cast<double>(done.prompt_tokens), done.prompt_seconds), done.ids.size(),
           rate(std::max(decoded - 1, 0.0), done.decode_seconds));
}

constexpr const char* kExamples =
    "Examples:\n"
    "  wick generate --model base --prompt \"Once upon a time\"\n"
    "  wick generate --model base --adapter adapter --prompt-file - < question.txt > answer.txt";

void run_generate(GenerateFlags& flags) {
  const std::string prompt = read_prompt(flags);
  const std::unique_ptr<Backend> backend = flags.device.make({.copy_adopted = true});
  const Bundle bundle = open_bundle(*backend, flags.model.model);
  flags.device.check_matmul_precision(*backend, bundle.decoder->matmul_precision());
  const AttachedAdapter adapter = attach_adapter(*backend, bundle.decoder->linears(), flags.model);
  flags.options.max_tokens = max_tokens(flags, bundle, prompt);
  const Generation done =
      generate_text(*bundle.decoder, bundle.tokenizer, prompt, flags.options, print);
  print("\n");
  tell_speed(done);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App& verb = *app.add_subcommand("generate", "Continue a prompt with a model and an adapter");
  auto flags = std::make_shared<GenerateFlags>();
  flags->model.add_model_to(verb);
  flags->model.add_adapter_to(verb);
  flags->prompt_given = verb.add_option("--prompt", flags->prompt, "The text to continue");
  verb.add_option("--prompt-file", flags->prompt_file,
                  "A file with that text, taken as it is; -: standard input")
      ->excludes(flags->prompt_given);
  flags->max_tokens_given =
      verb.add_option("--max-tokens", flags->options.max_tokens,
                      "New tokens at most [default: 256, or what the context has room for]")
          ->check(CLI::PositiveNumber);
  verb.add_option("--stop", flags->options.stop_text, "End before this text; may be repeated")
      ->allow_extra_args(false);
  add_sampling_flags(verb, flags->options.sampling);
  flags->device.add_to(verb);
  flags->device.add_matmul_precision_to(verb);
  verb.footer(kExamples);
  verb.callback([flags] { run_generate(*flags); });
}

}  // namespace wick
