// The output folder of a training run.
//
//   adapter_config.json, adapter_model.safetensors   the adapter (or a model's files: type full)
//   metrics.jsonl                                    a line a report: see Metrics and Validation
//   loss.svg                                         the same as a picture
//   checkpoint/state.safetensors                     what --resume needs
//
// Each file is written whole or not at all; metrics.jsonl grows by whole lines.
#pragma once

#include <filesystem>
#include <fstream>

#include "wick/train/report.h"

namespace wick {

enum class StartMode : uint8_t {
  fresh,      // the folder must not hold a result yet
  overwrite,  // a result is replaced when the first new one is saved
  resume,     // go on from the checkpoint; from the beginning where there is none
};

class RunFolder {
 public:
  // Makes the folder, and removes the traces of an older run where it is to be replaced. Errors: it
  // holds a result that may not be touched; it cannot be written.
  RunFolder(const std::filesystem::path& folder, StartMode mode);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path state_file() const { return path_ / "checkpoint" / "state.safetensors"; }
  std::filesystem::path metrics_file() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path chart_file() const { return path_ / "loss.svg"; }
  // Whether there is a state to go on from.
  bool resumes() const { return resumes_; }

 private:
  std::filesystem::path path_;
  bool resumes_ = false;
};

class MetricsFile {
 public:
  // Goes on with the lines up to `last_step`; later or damaged ones are dropped.
  MetricsFile(const std::filesystem::path& file, int64_t last_step);

  void append(const Metrics& metrics);
  void append(const Validation& validation);
  // Draws all lines so far.
  void write_chart(const std::filesystem::path& chart);

 private:
  void append_line(const std::string& line);

  std::filesystem::path file_;
  std::ofstream stream_;
};

}  // namespace wick
