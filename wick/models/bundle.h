// Opens and writes Hugging Face model folders: config.json, weights, tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "wick/models/decoder.h"
#include "wick/models/model_config.h"
#include "wick/text/tokenizer.h"

namespace wick {

// An open model folder. The back end must outlive it.
struct Bundle {
  std::filesystem::path folder;
  ModelConfig config;
  Tokenizer tokenizer;
  std::unique_ptr<Decoder> decoder;
};

struct OpenOptions {
  bool random_weights = false;  // initial weights by `seed`; the folder's own are not read
  uint64_t seed = 0;
  HeldType held = HeldType::fastest;  // of the folder's weights
};

// Errors name the folder or file: no such folder, no or bad config.json, no weights, tensors that
// are missing or shaped otherwise, a tokenizer with more tokens than the model has.
Bundle open_bundle(Backend& backend, const std::filesystem::path& folder,
                   const OpenOptions& options = {});
// The model alone, for work on ids: the folder needs no tokenizer.
std::unique_ptr<Decoder> open_decoder(Backend& backend, const std::filesystem::path& folder,
                                      const OpenOptions& options = {});

struct SaveOptions {
  std::optional<DType> dtype;  // of the weights; unset: what the source's config.json states
  bool overwrite = false;      // replace a model that the folder holds
  int64_t max_shard_bytes = int64_t{5'000'000'000};
};

// Writes the decoder's weights as a model folder: config.json of `source` with the number type and
// tied head as they are now, its generation_config.json and tokenizer files, and the weights, in
// shards with an index where they are larger than a shard.
//
// A folder that is not there yet, or is empty, appears whole by one rename. In a folder that holds
// other files (a training run's), all files are written beside their names and synced before the
// first is renamed; those of an older model that no longer belong are removed last.
void save_model_folder(const std::filesystem::path& folder, const std::filesystem::path& source,
                       Decoder& decoder, const SaveOptions& options = {});

}  // namespace wick
