// Files of a run.
#include "wick/train/run_folder.h"

#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/log.h"
#include "wick/train/loss_chart.h"

namespace wick {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

// The first sign of an adapter or a model; empty if there is none.
std::string result_in(const fs::path& folder) {
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "model.safetensors",
                           "model.safetensors.index.json", "config.json"}) {
    if (fs::exists(folder / name)) {
      return name;
    }
  }
  return {};
}

// The lines of a metrics file that are whole, as JSON.
std::vector<Json> read_lines(const fs::path& file) {
  std::vector<Json> lines;
  if (!fs::exists(file)) {
    return lines;
  }
  std::istringstream text(read_text(file));
  for (std::string line; std::getline(text, line);) {
    Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer()) {
      lines.push_back(std::move(json));
    }
  }
  return lines;
}

// What a killed process left of files that it had not finished: see AtomicFile.
void remove_unfinished(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.find(".safetensors.") != std::string::npos ||
                      name.starts_with(".adapter_config.json.") ||
                      name.starts_with(".metrics.jsonl.") || name.starts_with(".loss.svg.");
    if (ours && name.starts_with('.') && entry.is_regular_file()) {
      std::error_code ignored;
      fs::remove(entry.path(), ignored);
    }
  }
}

}  // namespace

RunFolder::RunFolder(const fs::path& folder, StartMode mode) : path_(folder) {
  check(!fs::exists(folder) || fs::is_directory(folder), "{}: is not a folder", folder.string());
  const std::string result = result_in(folder);
  const bool state = fs::exists(state_file());
  if (mode == StartMode::fresh) {
    check(
        result.empty() && !state,
        "{}: holds {} of an earlier run; go on with it by --resume, replace it by --overwrite, or "
        "name another folder",
        folder.string(), result.empty() ? "a checkpoint" : result);
  }
  if (mode == StartMode::resume && !state) {
    check(result.empty(),
          "{}: holds {} but no checkpoint/state.safetensors, so there is nothing to resume; "
          "replace it by --overwrite, or name another folder",
          folder.string(), result);
    log_info("{}: no checkpoint to resume from: starting at step 0", folder.string());
  }
  resumes_ = mode == StartMode::resume && state;
  std::error_code error;
  fs::create_directories(state_file().parent_path(), error);
  check(!error, "{}: cannot make the folder: {}", folder.string(), error.message());
  remove_unfinished(path_);
  remove_unfinished(state_file().parent_path());
  if (!resumes_) {
    for (const fs::path& old : {state_file(), metrics_file(), chart_file()}) {
      fs::remove(old, error);
      check(!error, "{}: cannot remove: {}", old.string(), error.message());
    }
  }
}

MetricsFile::MetricsFile(const fs::path& file, int64_t last_step) : file_(file) {
  std::string kept;
  for (const Json& line : read_lines(file)) {
    if (line["step"].get<int64_t>() <= last_step) {
      kept += line.dump() + "\n";
    }
  }
  write_text_atomically(file, kept);
  stream_.open(file, std::ios::app);
  check(stream_.is_open(), "{}: cannot open for writing", file.string());
}

void MetricsFile::append_line(const std::string& line) {
  // One write of a whole line, so that a reader never sees half of one.
  stream_ << line + "\n" << std::flush;
  check(stream_.good(), "{}: cannot write (is the disk full?)", file_.string());
}

void MetricsFile::append(const Metrics& metrics) {
  append_line(Json{{"step", metrics.step},
                   {"epoch", metrics.epoch},
                   {"loss", metrics.loss},
                   {"learning_rate", metrics.learning_rate},
                   {"gradient_norm", metrics.gradient_norm},
                   {"tokens_per_second", metrics.tokens_per_second},
                   {"target_tokens_per_second", metrics.target_tokens_per_second},
                   {"tokens", metrics.tokens},
                   {"target_tokens", metrics.target_tokens},
                   {"seconds", metrics.seconds},
                   {"peak_backend_bytes", metrics.peak_backend_bytes},
                   {"peak_process_bytes", metrics.peak_process_bytes}}
                  .dump());
}

void MetricsFile::append(const Validation& validation) {
  append_line(Json{{"step", validation.step},
                   {validation.set + "_loss", validation.loss},
                   {validation.set + "_perplexity", validation.perplexity},
                   {validation.set + "_target_tokens", validation.target_tokens},
                   {"seconds", validation.seconds}}
                  .dump());
}

void MetricsFile::write_chart(const fs::path& chart) {
  std::vector<LossPoint> train;
  std::vector<LossPoint> valid;
  for (const Json& line : read_lines(file_)) {
    const auto add = [&](const char* field, std::vector<LossPoint>& points) {
      if (line.contains(field) && line[field].is_number()) {
        points.push_back({line["step"].get<int64_t>(), line[field].get<double>()});
      }
    };
    add("loss", train);
    add("valid_loss", valid);
  }
  write_text_atomically(chart, draw_loss_chart(train, valid));
}

}  // namespace wick
