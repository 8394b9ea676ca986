// A file or folder of records as samples in memory, with what was cut or left out counted.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "wick/data/masking.h"

namespace wick {

struct DatasetOptions {
  TrainOn train_on = TrainOn::completion;
  int64_t max_length = 2048;  // tokens; what is longer is cut at its end
  int threads = 0;            // that encode; 0: one a core
};

struct Dataset {
  std::vector<Sample> samples;  // each has at least one target
  int64_t records = 0;
  int64_t cut = 0;      // longer than max_length
  int64_t skipped = 0;  // no target token, or none left after the cut
  int64_t tokens = 0;
  int64_t target_tokens = 0;

  // "1200 records, 34.1k tokens, 12.0k of them learnt; 3 cut to 2048 tokens; 1 skipped: ..."
  std::string summary(const DatasetOptions& options) const;
};

// Errors: no such file; a bad record (file and line); no record; no record with a target. Where
// chats are rendered as ChatML although the model's own template is another, a warning says so.
// Files that take longer than two seconds show a progress bar.
Dataset read_dataset(const std::filesystem::path& file, const Tokenizer& tokenizer,
                     const DatasetOptions& options);

struct DataFiles {
  std::filesystem::path train;
  std::optional<std::filesystem::path> valid;
  std::optional<std::filesystem::path> test;
};

// A file is training data; a folder holds train.jsonl and perhaps valid.jsonl and test.jsonl.
DataFiles find_data_files(const std::filesystem::path& file_or_folder);

// Moves a random `fraction` of the samples, at least one, to a new set; at least one stays.
Dataset split_off(Dataset& from, double fraction, uint64_t seed);

}  // namespace wick
