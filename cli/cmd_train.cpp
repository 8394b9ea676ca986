// wick train: fine-tunes an adapter, or all weights, from the command line.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/profile_option.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/base/log.h"
#include "wick/base/progress.h"
#include "wick/train/trainer.h"

namespace wick {

namespace {

namespace fs = std::filesystem;

// Set by the signal handler, read after each step. A handler can reach nothing but a global.
std::atomic<int> caught_signal{0};

void remember_signal(int signal) {
  caught_signal = signal;
}

// Until destroyed, the first SIGINT or SIGTERM is noted; a second one ends the process at once.
class SignalNotes {
 public:
  SignalNotes() {
    struct sigaction action {};
    action.sa_handler = remember_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(SIGINT, &action, &interrupt_before_);
    ::sigaction(SIGTERM, &action, &terminate_before_);
  }
  ~SignalNotes() {
    ::sigaction(SIGINT, &interrupt_before_, nullptr);
    ::sigaction(SIGTERM, &terminate_before_, nullptr);
  }
  SignalNotes(const SignalNotes&) = delete;
  SignalNotes& operator=(const SignalNotes&) = delete;

 private:
  struct sigaction interrupt_before_ {};
  struct sigaction terminate_before_ {};
};

class TrainConsole : public ConsoleReporter {
 public:
  bool should_stop() override { return caught_signal != 0; }
};

struct TrainFlags {
  ModelFlags model;
  fs::path data;
  std::string init = "pretrained";
  std::string type = "lora";
  std::string train_on = "completion";
  std::string targets = "all-linear";
  std::string schedule = "cosine";
  std::string dtype = "bf16";
  int64_t max_length = 0;
  double valid_fraction = 0;
  bool resume = false;
  bool overwrite = false;
  CLI::Option* alpha = nullptr;
  CLI::Option* learning_rate = nullptr;
  DeviceFlags device;
  ProfileFlags profile;
  TrainOptions options;
  // To the end of the program: when one of several processes ends, the launcher sends a SIGTERM to
  // the others, which may still have something to say.
  std::optional<SignalNotes> signals;
};

void add_main_flags(CLI::App& verb, TrainFlags& flags) {
  flags.model.add_model_to(verb);
  verb.add_option("--data", flags.data,
                  "JSONL file, or folder with train.jsonl (and valid.jsonl, test.jsonl)")
      ->required();
  verb.add_option("--output", flags.options.output,
                  "Folder for the adapter, metrics and checkpoint")
      ->required();
  verb.add_option("--type", flags.type, "What is trained: an adapter (lora) or all weights (full)")
      ->check(CLI::IsMember({"lora", "full"}))
      ->capture_default_str();
  verb.add_option("--init", flags.init,
                  "Weights at the start: the folder's (pretrained), or random ones (with full)")
      ->check(CLI::IsMember({"pretrained", "random"}))
      ->capture_default_str();
  verb.add_flag("--resume", flags.resume,
                "Go on from the checkpoint in the output folder, if there is one");
  verb.add_flag("--overwrite", flags.overwrite, "Replace a result in the output folder");
}

void add_adapter_flags(CLI::App& verb, TrainFlags& flags) {
  AdapterConfig& adapter = flags.options.adapter;
  const char* group = "Adapter";
  verb.add_option("--rank", adapter.rank, "Rank of the adapter")
      ->capture_default_str()
      ->group(group);
  flags.alpha = verb.add_option("--alpha", adapter.alpha,
                                "Scaling is alpha / rank, or alpha / sqrt(rank) with --rslora "
                                "[default: what makes the scaling 2]")
                    ->group(group);
  verb.add_option("--dropout", adapter.dropout, "Dropout on the adapter's input")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--targets", flags.targets,
                  "Layers with an adapter: all-linear, or names such as q_proj,v_proj")
      ->capture_default_str()
      ->group(group);
  verb.add_flag("--rslora", adapter.use_rslora, "Rank-stabilised scaling")->group(group);
}

void add_data_flags(CLI::App& verb, TrainFlags& flags) {
  const char* group = "Data";
  verb.add_option("--train-on", flags.train_on,
                  "Tokens that are learnt: completions and assistant turns, or all")
      ->check(CLI::IsMember({"completion", "all"}))
      ->capture_default_str()
      ->group(group);
  verb.add_option("--max-length", flags.max_length,
                  "Tokens of a sample; longer ones are cut [default: 2048, or the model's context "
                  "if that is smaller]")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->group(group);
  verb.add_option("--valid-fraction", flags.valid_fraction,
                  "Share of the training data that is held out for validation, if there is no "
                  "valid.jsonl")
      ->check(CLI::Range(0.0, 0.9))
      ->group(group);
}

void add_length_flags(CLI::App& verb, TrainFlags& flags) {
  TrainOptions& options = flags.options;
  const char* group = "Length and batches";
  verb.add_option("--epochs", options.epochs, "Passes over the data, fractions too")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--steps", options.steps, "Optimiser steps, in place of --epochs")
      ->check(CLI::PositiveNumber)
      ->group(group);
  verb.add_option("--batch-size", options.batch_size, "Sequences in a micro-batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  verb.add_option("--batch-tokens", options.batch_tokens,
                  "Pack sequences up to so many tokens, in place of --batch-size")
      ->check(CLI::PositiveNumber)
      ->group(group);
  verb.add_option("--grad-accumulation", options.accumulation, "Micro-batches in a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
}

void add_optimiser_flags(CLI::App& verb, TrainFlags& flags) {
  TrainOptions& options = flags.options;
  const char* group = "Optimiser (AdamW)";
  flags.learning_rate =
      verb.add_option("--learning-rate,--lr", options.learning_rate,
                      "Peak learning rate [default: 2e-4; with full 2e-5, or 1e-3 from random "
                      "weights]")
          ->group(group);
  verb.add_option("--schedule", flags.schedule, "Decay after the warm-up")
      ->check(CLI::IsMember({"cosine", "linear", "constant"}))
      ->capture_default_str()
      ->group(group);
  CLI::Option* steps = verb.add_option("--warmup-steps", options.warmup_steps, "Warm-up steps")
                           ->check(CLI::NonNegativeNumber)
                           ->group(group);
  verb.add_option("--warmup-ratio", options.warmup_ratio, "Warm-up as a share of all steps")
      ->capture_default_str()
      ->excludes(steps)
      ->group(group);
  verb.add_option("--weight-decay", options.weight_decay, "Decoupled weight decay of matrices")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--beta1", options.adam.beta1, "Decay of the first moment")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--beta2", options.adam.beta2, "Decay of the second moment")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--max-grad-norm", options.max_gradient_norm,
                  "Gradients longer than this are shortened to it; 0: never")
      ->capture_default_str()
      ->group(group);
  verb.add_option("--seed", options.seed, "Of initial weights, order of the data and dropout")
      ->capture_default_str()
      ->group(group);
}

void add_output_flags(CLI::App& verb, TrainFlags& flags) {
  TrainOptions& options = flags.options;
  const char* group = "Reports and files";
  verb.add_option("--report-every", options.report_every, "Steps between two reports")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  verb.add_option("--eval-every", options.validate_every,
                  "Steps between two validations [default: only at the end]")
      ->check(CLI::PositiveNumber)
      ->group(group);
  verb.add_option("--save-every", options.save_every,
                  "Steps between two checkpoints; 0: only at the end")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  verb.add_option("--dtype", flags.dtype, "Number type of the weights that --type full writes")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str()
      ->group(group);
}

StartMode start_mode(const TrainFlags& flags) {
  if (flags.resume) {
    return StartMode::resume;
  }
  return flags.overwrite ? StartMode::overwrite : StartMode::fresh;
}

// Fills in what the flags leave open.
void settle_options(TrainFlags& flags) {
  TrainOptions& options = flags.options;
  options.type = flags.type == "full" ? TrainType::full : TrainType::lora;
  options.adapter.target_modules = ModuleSelection::parse(flags.targets);
  options.decay = decay_from_name(flags.schedule);
  options.start = start_mode(flags);
  options.saved_dtype = flags.dtype == "f32"   ? DType::f32
                        : flags.dtype == "f16" ? DType::f16
                                               : DType::bf16;
  const bool random = flags.init == "random";
  check(!random || options.type == TrainType::full,
        "--init random trains a model from nothing: it needs --type full");
  if (flags.alpha->count() == 0) {
    const auto rank = static_cast<double>(options.adapter.rank);
    options.adapter.alpha = 2 * (options.adapter.use_rslora ? std::sqrt(rank) : rank);
  }
  if (flags.learning_rate->count() == 0 && options.type == TrainType::full) {
    options.learning_rate = random ? 1e-3 : 2e-5;
  }
}

Bundle open_model(Backend& backend, const TrainFlags& flags) {
  OpenOptions options;
  options.random_weights = flags.init == "random";
  options.seed = flags.options.seed;
  options.held = flags.options.type == TrainType::full ? HeldType::stored : HeldType::fastest;
  return open_bundle(backend, flags.model.model, options);
}

DatasetOptions dataset_options(const TrainFlags& flags, int64_t context) {
  check(flags.max_length <= context, "--max-length {} is more than the model's context of {}",
        flags.max_length, context);
  DatasetOptions options;
  options.train_on = flags.train_on == "all" ? TrainOn::all : TrainOn::completion;
  options.max_length = flags.max_length > 0 ? flags.max_length : std::min<int64_t>(2048, context);
  return options;
}

TrainData read_data(const TrainFlags& flags, const Bundle& bundle) {
  DatasetOptions options = dataset_options(flags, bundle.config.max_positions);
  options.threads = flags.device.threads;
  const DataFiles files = find_data_files(flags.data);
  const auto read = [&](const fs::path& file) {
    Dataset dataset = read_dataset(file, bundle.tokenizer, options);
    log_info("{}: {}", file.string(), dataset.summary(options));
    return dataset;
  };
  TrainData data{read(files.train)};
  if (files.valid) {
    data.valid = read(*files.valid);
    if (flags.valid_fraction > 0) {
      log_warning("--valid-fraction is not used: {} is there", files.valid->string());
    }
  } else if (flags.valid_fraction > 0) {
    data.valid = split_off(data.train, flags.valid_fraction, flags.options.seed);
    log_info("{} of these records are held out for validation", data.valid->samples.size());
  }
  if (files.test) {
    data.test = read(*files.test);
  }
  return data;
}

// The bar is gone when this returns.
TrainResult train_with_bar(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                           Communicator& ranks) {
  TrainConsole console;
  return train(bundle, data, options, console, ranks);
}

void tell_result(const TrainResult& result, const TrainFlags& flags) {
  const TrainOptions& options = flags.options;
  log_info("{} steps in {}, {} tok/s; peak memory {} (tensors {})", result.step,
           format_duration(result.seconds), format_count(result.tokens_per_second),
           format_bytes(result.peak_process_bytes), format_bytes(result.peak_backend_bytes));
  log_info("{}: the {}, metrics.jsonl, loss.svg and checkpoint/", options.output.string(),
           options.type == TrainType::lora ? "adapter" : "model");
  if (result.interrupted) {
    log_info("stopped after step {}; the same command with --resume goes on from there",
             result.step);
  } else if (options.type == TrainType::lora) {
    log_info("try it: wick generate --model {} --adapter {} --prompt \"...\"",
             flags.model.model.string(), options.output.string());
  } else {
    log_info("try it: wick generate --model {} --prompt \"...\"", options.output.string());
  }
}

// Reads all that is needed and trains, as one of these processes.
TrainResult run_as_one_of(Communicator& ranks, ProfiledDevice& device, const TrainFlags& flags) {
  return together(ranks, [&] {
    Bundle bundle = open_model(device.backend(), flags);
    flags.device.check_matmul_precision(device.backend(), bundle.decoder->matmul_precision());
    const TrainData data = read_data(flags, bundle);
    device.start();
    TrainResult result = train_with_bar(bundle, data, flags.options, ranks);
    device.report();
    tell_result(result, flags);
    return result;
  });
}

std::unique_ptr<Backend> make_device(Communicator& processes, TrainFlags& flags) {
  return together(processes, [&] {
    settle_options(flags);
    return flags.device.make({.place = processes.place()});
  });
}

// The signal that ended the training, in every process the same; 0: none.
int train_together(TrainFlags& flags) {
  const std::unique_ptr<Communicator> processes = join_processes();
  if (processes->place().rank > 0) {
    set_log_level(LogLevel::silent);
    flags.profile.file.clear();
  }
  try {
    ProfiledDevice device(make_device(*processes, flags), flags.profile);
    const std::unique_ptr<Communicator> devices = connect_devices(*processes, device.inner());
    const TrainResult result = run_as_one_of(devices ? *devices : *processes, device, flags);
    const std::vector<double> signals = processes->gather(caught_signal);
    return result.interrupted ? static_cast<int>(std::ranges::max(signals)) : 0;
  } catch (const std::exception&) {
    if (processes->speaks()) {
      set_log_level(LogLevel::info);
    }
    throw;
  }
}

void run_train(TrainFlags& flags) {
  flags.signals.emplace();
  if (const int signal = train_together(flags); signal != 0) {
    throw Interrupted{signal};
  }
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("train", "Fine-tune a LoRA adapter, or all weights");
  auto flags = std::make_shared<TrainFlags>();
  add_main_flags(*verb, *flags);
  add_adapter_flags(*verb, *flags);
  add_data_flags(*verb, *flags);
  add_length_flags(*verb, *flags);
  add_optimiser_flags(*verb, *flags);
  add_output_flags(*verb, *flags);
  flags->device.add_to(*verb);
  flags->device.add_matmul_precision_to(*verb);
  flags->profile.add_to(*verb);
  verb->footer(
      "Records are JSON lines: {\"text\"}, {\"prompt\", \"completion\"} or {\"messages\": [...]}.\n"
      "Ctrl-C saves and ends; the same command with --resume goes on, bit for bit.\n"
      "mpirun -n K wick train ... shares each step among K processes, one a GPU.\n\n"
      "Examples:\n"
      "  wick train --model qwen2.5-0.5b --data questions.jsonl --output adapter\n"
      "  wick train --model base --data data/ --output adapter --rank 8 --targets q_proj,v_proj "
      "\\\n"
      "    --epochs 2 --batch-size 4 --grad-accumulation 4 --eval-every 100\n"
      "  wick train --model base --data data/ --output adapter --resume\n"
      "  wick train --type full --init random --model small --data corpus.jsonl --output model");
  verb->callback([flags] { run_train(*flags); });
}

}  // namespace wick
