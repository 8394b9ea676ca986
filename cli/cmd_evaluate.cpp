// wick evaluate: loss, perplexity and exact match of a model on a file of records.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/exact_match.h"
#include "cli/open_model.h"
#include "cli/output.h"
#include "wick/base/error.h"
#include "wick/base/log.h"
#include "wick/base/progress.h"
#include "wick/data/dataset.h"
#include "wick/train/evaluate.h"

namespace wick {

namespace {

namespace fs = std::filesystem;

struct EvaluateFlags {
  ModelFlags model;
  DeviceFlags device;
  fs::path data;
  std::string train_on = "completion";
  int64_t max_length = 0;
  int64_t limit = 0;
  int64_t samples = 3;
  bool exact_match = false;
  bool compare = false;
  bool json = false;
};

// What one model, or one model with an adapter, made of the data.
struct Scores {
  std::string name;  // "model" or "adapter"
  Evaluation evaluation;
  std::optional<Answers> answers;
};

// A folder stands for its test.jsonl, else its valid.jsonl.
fs::path evaluation_file(const fs::path& data) {
  if (!fs::is_directory(data)) {
    return data;
  }
  const DataFiles files = find_data_files(data);
  check(files.test || files.valid, "{}: the folder has no test.jsonl or valid.jsonl; name a file",
        data.string());
  return files.test ? *files.test : *files.valid;
}

Dataset read_samples(const EvaluateFlags& flags, const fs::path& file, const Bundle& bundle) {
  const int64_t context = bundle.config.max_positions;
  check(flags.max_length <= context, "--max-length {} is more than the model's context of {}",
        flags.max_length, context);
  DatasetOptions options;
  options.train_on = flags.train_on == "all" ? TrainOn::all : TrainOn::completion;
  options.max_length = flags.max_length > 0 ? flags.max_length : context;
  options.threads = flags.device.threads;
  Dataset dataset = read_dataset(file, bundle.tokenizer, options);
  log_info("{}: {}", file.string(), dataset.summary(options));
  return dataset;
}

Scores score(Bundle& bundle, std::string name, std::span<const Sample> samples,
             const std::vector<Question>& questions) {
  Scores scores{.name = std::move(name)};
  {
    Progress progress("evaluating", static_cast<int64_t>(samples.size()));
    scores.evaluation =
        evaluate(*bundle.decoder, samples, 2048, [&](int64_t done) { progress.update(done); });
  }
  if (!questions.empty()) {
    scores.answers = answer(bundle, questions, "answering");
  }
  return scores;
}

std::string row(const std::string& title, const std::vector<std::string>& cells) {
  std::string line = fmt::format("{:<14}", title);
  for (const std::string& cell : cells) {
    line += fmt::format("{:<24}", cell);
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string table(const std::vector<Scores>& columns, size_t questions) {
  std::vector<std::string> names;
  std::vector<std::string> losses;
  std::vector<std::string> perplexities;
  std::vector<std::string> matches;
  for (const Scores& scores : columns) {
    names.push_back(scores.name);
    losses.push_back(fmt::format("{:.4f}", scores.evaluation.loss));
    perplexities.push_back(fmt::format("{:.5g}", scores.evaluation.perplexity));
    if (scores.answers) {
      const double share =
          static_cast<double>(scores.answers->matches) / static_cast<double>(questions);
      matches.push_back(
          fmt::format("{} of {} ({:.1f} %)", scores.answers->matches, questions, 100 * share));
    }
  }
  std::string text = columns.size() > 1 ? row("", names) : std::string();
  text += row("loss", losses) + row("perplexity", perplexities);
  if (!matches.empty()) {
    text += row("exact match", matches);
  }
  return text;
}

std::string one_line(const std::string& text) {
  std::string line = text;
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

// Some questions, spread over the file, with what each model said.
std::string shown_samples(const std::vector<Scores>& columns,
                          const std::vector<Question>& questions, int64_t count) {
  std::string text;
  const auto shown = std::min<int64_t>(count, static_cast<int64_t>(questions.size()));
  for (int64_t i = 0; i < shown; ++i) {
    const size_t at = static_cast<size_t>(i) * questions.size() / static_cast<size_t>(shown);
    const Question& question = questions[at];
    text += "\n" + fmt::format("{:<14}{}\n", "prompt", one_line(question.prompt));
    text += fmt::format("{:<14}{}\n", "expected", one_line(question.expected));
    for (const Scores& scores : columns) {
      const std::string& said = scores.answers->texts[at];
      text += fmt::format("{:<14}{}{}\n", scores.name, one_line(said),
                          said == question.expected ? "  [match]" : "");
    }
  }
  return text;
}

std::string as_json(const std::vector<Scores>& columns, size_t questions) {
  nlohmann::ordered_json json;
  for (const Scores& scores : columns) {
    nlohmann::ordered_json& column = json[scores.name];
    column = {{"loss", scores.evaluation.loss},
              {"perplexity", scores.evaluation.perplexity},
              {"tokens", scores.evaluation.tokens},
              {"target_tokens", scores.evaluation.target_tokens}};
    if (scores.answers) {
      column["exact_match"] =
          static_cast<double>(scores.answers->matches) / static_cast<double>(questions);
      column["matches"] = scores.answers->matches;
      column["questions"] = questions;
    }
  }
  return json.dump() + "\n";
}

void run_evaluate(const EvaluateFlags& flags) {
  check(!flags.compare || !flags.model.adapter.empty(), "--compare needs an --adapter");
  const fs::path file = evaluation_file(flags.data);
  const std::unique_ptr<Backend> backend = flags.device.make({.copy_adopted = flags.exact_match});
  Bundle bundle = open_bundle(*backend, flags.model.model);
  flags.device.check_matmul_precision(*backend, bundle.decoder->matmul_precision());
  const Dataset dataset = read_samples(flags, file, bundle);
  std::span<const Sample> samples = dataset.samples;
  if (flags.limit > 0 && static_cast<size_t>(flags.limit) < samples.size()) {
    samples = samples.first(static_cast<size_t>(flags.limit));
  }
  std::vector<Question> questions;
  if (flags.exact_match) {
    questions = read_questions(file, flags.limit);
  }
  const bool adapted = !flags.model.adapter.empty();
  std::vector<Scores> columns;
  if (!adapted || flags.compare) {
    columns.push_back(score(bundle, "model", samples, questions));
  }
  const AttachedAdapter adapter = attach_adapter(*backend, bundle.decoder->linears(), flags.model);
  if (adapted) {
    columns.push_back(score(bundle, "adapter", samples, questions));
  }
  if (flags.json) {
    print(as_json(columns, questions.size()));
    return;
  }
  print(table(columns, questions.size()));
  if (flags.exact_match) {
    print(shown_samples(columns, questions, flags.samples));
  }
}

}  // namespace

void add_evaluate(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("evaluate", "Loss, perplexity and exact match on a file of records");
  auto flags = std::make_shared<EvaluateFlags>();
  flags->model.add_model_to(*verb);
  flags->model.add_adapter_to(*verb);
  verb->add_option("--data", flags->data,
                   "JSONL file, or folder with test.jsonl (else valid.jsonl)")
      ->required();
  verb->add_flag("--compare", flags->compare, "Also without the adapter, side by side");
  verb->add_flag("--exact-match,--generate", flags->exact_match,
                 "Let the model answer each prompt greedily, and count the answers that equal the "
                 "record's");
  verb->add_option("--samples", flags->samples, "Answers to show, with --exact-match")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--limit", flags->limit, "Use only so many records [default: all]")
      ->check(CLI::PositiveNumber);
  verb->add_option("--train-on", flags->train_on,
                   "Tokens that count: completions and assistant turns, or all")
      ->check(CLI::IsMember({"completion", "all"}))
      ->capture_default_str();
  verb->add_option("--max-length", flags->max_length,
                   "Tokens of a sample; longer ones are cut [default: the model's context]")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  verb->add_flag("--json", flags->json, "Print one line of JSON");
  flags->device.add_to(*verb);
  flags->device.add_matmul_precision_to(*verb);
  verb->footer(
      "Examples:\n"
      "  wick evaluate --model base --data held-out.jsonl\n"
      "  wick evaluate --model base --adapter adapter --data held-out.jsonl --compare \\\n"
      "    --exact-match --samples 5");
  verb->callback([flags] { run_evaluate(*flags); });
}

}  // namespace wick
