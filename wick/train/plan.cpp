// Options to numbers.
#include "wick/train/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "wick/base/error.h"

namespace wick {

namespace {

// FNV-1a over what is trained on.
uint64_t hash_of(const Dataset& dataset) {
  uint64_t hash = 14695981039346656037ULL;
  const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211ULL; };
  for (const Sample& sample : dataset.samples) {
    mix(sample.ids.size());
    for (size_t i = 0; i < sample.ids.size(); ++i) {
      mix(static_cast<uint64_t>(sample.ids[i]) * 2 + sample.is_target[i]);
    }
  }
  return hash;
}

std::string words_of(const ModuleSelection& modules) {
  switch (modules.kind) {
    case ModuleSelection::Kind::all_linear:
      return "all-linear";
    case ModuleSelection::Kind::expression:
      return modules.expression;
    case ModuleSelection::Kind::names:
      break;
  }
  return fmt::format("{}", fmt::join(modules.names, ","));
}

// Each epoch is planned on its own, so their number is bounded.
constexpr double kMaxEpochs = 1e5;

bool is_share(double value) {
  return value >= 0 && value < 1;  // false for NaN
}

void check_context(const Decoder& decoder, const Dataset& data) {
  const int64_t context = decoder.config().max_positions;
  size_t longest = 0;
  for (const Sample& sample : data.samples) {
    longest = std::max(longest, sample.ids.size());
  }
  check(static_cast<int64_t>(longest) <= context,
        "a sample is {} tokens long, the model's context is {}; use --max-length {} to cut samples",
        longest, context, context);
}

}  // namespace

void check_options(const TrainOptions& options) {
  const auto positive = [](double value) { return value > 0 && std::isfinite(value); };
  check(positive(options.learning_rate), "learning rate: {} is not a positive number",
        options.learning_rate);
  check(options.steps > 0 || positive(options.epochs), "epochs: {} is not a positive number",
        options.epochs);
  check(options.steps > 0 || options.epochs <= kMaxEpochs, "epochs: {} is more than {}",
        options.epochs, kMaxEpochs);
  check(is_share(options.warmup_ratio), "warm-up ratio: {} is not in [0, 1)", options.warmup_ratio);
  check(is_share(options.adam.beta1) && is_share(options.adam.beta2),
        "AdamW: betas {} and {} must both be in [0, 1)", options.adam.beta1, options.adam.beta2);
  check(options.weight_decay >= 0 && std::isfinite(options.weight_decay),
        "weight decay: {} is not a number from 0 on", options.weight_decay);
  check(options.max_gradient_norm >= 0, "gradient norm limit: {} is not a number from 0 on",
        options.max_gradient_norm);
  check(options.report_every > 0, "report every: {} steps; at least 1 is needed",
        options.report_every);
  check(!options.output.empty(), "no output folder is given");
}

void check_run(const Bundle& bundle, const TrainData& data, const TrainOptions& options) {
  check_options(options);
  std::error_code ignored;
  check(!std::filesystem::equivalent(options.output, bundle.folder, ignored),
        "{}: is the model's own folder; the output needs another", options.output.string());
  for (const Dataset* set :
       {&data.train, data.valid ? &*data.valid : nullptr, data.test ? &*data.test : nullptr}) {
    if (set != nullptr) {
      check_context(*bundle.decoder, *set);
    }
  }
}

BatchOptions batch_options_of(const TrainOptions& options) {
  return {options.batch_size, options.batch_tokens, options.accumulation, options.seed};
}

Schedule plan_schedule(const TrainOptions& options, const Batcher& batcher) {
  Schedule schedule;
  schedule.decay = options.decay;
  schedule.total_steps = options.steps;
  if (options.steps <= 0) {
    const auto whole = static_cast<int64_t>(options.epochs);
    schedule.total_steps = 0;
    for (int64_t epoch = 0; epoch < whole; ++epoch) {
      schedule.total_steps += batcher.steps_in_epoch(epoch);
    }
    const double rest = options.epochs - static_cast<double>(whole);
    schedule.total_steps +=
        static_cast<int64_t>(std::ceil(rest * static_cast<double>(batcher.steps_in_epoch(whole))));
  }
  schedule.warmup_steps =
      options.warmup_steps >= 0
          ? options.warmup_steps
          : std::llround(options.warmup_ratio * static_cast<double>(schedule.total_steps));
  return schedule;
}

std::map<std::string, std::string> identity_of(const TrainOptions& options, const Dataset& train,
                                               int64_t trained_values) {
  std::map<std::string, std::string> identity = {
      {"type", options.type == TrainType::lora ? "lora" : "full"},
      {"trained values", fmt::format("{}", trained_values)},
      {"data", fmt::format("{} samples, hash {:016x}", train.samples.size(), hash_of(train))},
      {"batch size", fmt::format("{}", options.batch_size)},
      {"batch tokens", fmt::format("{}", options.batch_tokens)},
      {"gradient accumulation", fmt::format("{}", options.accumulation)},
      {"learning rate", fmt::format("{}", options.learning_rate)},
      {"schedule", std::string(name_of(options.decay))},
      {"warm-up", options.warmup_steps >= 0 ? fmt::format("{} steps", options.warmup_steps)
                                            : fmt::format("{} of all", options.warmup_ratio)},
      {"weight decay", fmt::format("{}", options.weight_decay)},
      {"AdamW", fmt::format("betas {} {}, epsilon {}", options.adam.beta1, options.adam.beta2,
                            options.adam.epsilon)},
      {"gradient norm limit", fmt::format("{}", options.max_gradient_norm)},
      {"seed", fmt::format("{}", options.seed)},
  };
  if (options.type == TrainType::lora) {
    const AdapterConfig& adapter = options.adapter;
    identity["rank"] = fmt::format("{}", adapter.rank);
    identity["alpha"] = fmt::format("{}", adapter.alpha);
    identity["dropout"] = fmt::format("{}", adapter.dropout);
    identity["rsLoRA"] = adapter.use_rslora ? "on" : "off";
    identity["targets"] = words_of(adapter.target_modules);
  }
  return identity;
}

}  // namespace wick
