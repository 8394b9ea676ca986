// Reading, counting and splitting.
#include "wick/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "wick/base/error.h"
#include "wick/base/log.h"
#include "wick/base/parallel.h"
#include "wick/base/progress.h"
#include "wick/base/random.h"
#include "wick/data/random_streams.h"

namespace wick {

namespace fs = std::filesystem;

namespace {

void add(Dataset& dataset, Sample sample) {
  dataset.tokens += static_cast<int64_t>(sample.ids.size());
  dataset.target_tokens += sample.target_tokens();
  dataset.samples.push_back(std::move(sample));
}

// Cuts the sample if need be, and adds it if there is something to learn.
void take(Dataset& dataset, Sample sample, const DatasetOptions& options) {
  const auto limit = static_cast<size_t>(options.max_length);
  if (sample.ids.size() > limit) {
    ++dataset.cut;
    sample.ids.resize(limit);
    sample.is_target.resize(limit);
  }
  if (sample.target_tokens() == 0) {
    ++dataset.skipped;
    return;
  }
  add(dataset, std::move(sample));
}

void warn_of_template(const Tokenizer& tokenizer, const fs::path& file) {
  const std::string& own = tokenizer.chat_template();
  if (!own.empty() && own.find("<|im_start|>") == std::string::npos) {
    log_warning(
        "{}: chats are rendered as ChatML; the model's own chat template is another, and this "
        "version does not run it",
        file.string());
  }
}

bool is_chat(const Record& record) {
  return record.form == Record::Form::chat;
}

// A few hundred records, fewer at the end of the file.
std::vector<Record> next_records(RecordReader& reader) {
  std::vector<Record> records;
  while (records.size() < 256) {
    std::optional<Record> record = reader.next();
    if (!record) {
      break;
    }
    records.push_back(std::move(*record));
  }
  return records;
}

}  // namespace

std::string Dataset::summary(const DatasetOptions& options) const {
  std::string text = fmt::format("{} records, {} tokens, {} of them learnt", samples.size(),
                                 format_count(static_cast<double>(tokens)),
                                 format_count(static_cast<double>(target_tokens)));
  if (cut > 0) {
    text += fmt::format("; {} cut to {} tokens", cut, options.max_length);
  }
  if (skipped > 0) {
    text += fmt::format("; {} skipped: no token to learn{}", skipped,
                        cut > 0 ? " (or none left after the cut)" : "");
  }
  return text;
}

Dataset read_dataset(const fs::path& file, const Tokenizer& tokenizer,
                     const DatasetOptions& options) {
  check(options.max_length >= 2, "max length: {} tokens, at least 2 are needed",
        options.max_length);
  RecordReader reader(file);
  Progress progress("reading " + file.filename().string(), reader.bytes_total());
  ThreadPool pool(options.threads);
  Dataset dataset;
  bool chat_seen = false;
  for (;;) {
    const std::vector<Record> records = next_records(reader);
    if (records.empty()) {
      break;
    }
    if (!chat_seen && std::any_of(records.begin(), records.end(), is_chat)) {
      chat_seen = true;
      warn_of_template(tokenizer, file);
    }
    std::vector<Sample> samples(records.size());
    pool.run(static_cast<int64_t>(records.size()), [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      samples[at] = encode_record(tokenizer, records[at], options.train_on);
    });
    dataset.records += static_cast<int64_t>(records.size());
    for (Sample& sample : samples) {
      take(dataset, std::move(sample), options);
    }
    progress.update(reader.bytes_read());
  }
  check(dataset.records > 0, "{}: no records; a line must be a JSON object such as {}",
        file.string(), R"({"prompt": "...", "completion": "..."})");
  check(!dataset.samples.empty(),
        "{}: none of {} records has a token to learn ({} were cut to {} tokens); completions or "
        "assistant turns are missing, or --max-length is too small",
        file.string(), dataset.records, dataset.cut, options.max_length);
  return dataset;
}

DataFiles find_data_files(const fs::path& file_or_folder) {
  check(fs::exists(file_or_folder), "{}: no such file or folder", file_or_folder.string());
  DataFiles files;
  if (!fs::is_directory(file_or_folder)) {
    files.train = file_or_folder;
    return files;
  }
  files.train = file_or_folder / "train.jsonl";
  check(fs::exists(files.train), "{}: the folder has no train.jsonl", file_or_folder.string());
  const auto if_there = [&](const char* name) -> std::optional<fs::path> {
    const fs::path path = file_or_folder / name;
    return fs::exists(path) ? std::optional(path) : std::nullopt;
  };
  files.valid = if_there("valid.jsonl");
  files.test = if_there("test.jsonl");
  return files;
}

Dataset split_off(Dataset& from, double fraction, uint64_t seed) {
  check(fraction > 0 && fraction < 1, "valid fraction: {} is not between 0 and 1", fraction);
  const size_t total = from.samples.size();
  check(total >= 2, "valid fraction: {} record is too few to split", total);
  const auto wanted = std::llround(fraction * static_cast<double>(total));
  const auto count = std::clamp<size_t>(static_cast<size_t>(wanted), 1, total - 1);

  std::vector<uint32_t> order(total);
  std::iota(order.begin(), order.end(), 0U);
  shuffle(order, Random(seed, streams::kSplit));
  std::vector<uint8_t> chosen(total, 0);
  for (size_t i = 0; i < count; ++i) {
    chosen[order[i]] = 1;
  }
  Dataset kept;
  Dataset moved;
  for (size_t i = 0; i < total; ++i) {
    add(chosen[i] != 0 ? moved : kept, std::move(from.samples[i]));
  }
  kept.records = static_cast<int64_t>(kept.samples.size());
  moved.records = static_cast<int64_t>(moved.samples.size());
  kept.cut = from.cut;
  kept.skipped = from.skipped;
  from = std::move(kept);
  return moved;
}

}  // namespace wick
