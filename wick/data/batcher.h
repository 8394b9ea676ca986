// Samples to the micro-batches of each training step, in an order that a seed fixes.
//
// Each epoch takes every sample once, in a new order, and ends with a step that may be smaller.
// Sequences are packed end to end: there is no padding, and attention stays within each. Where the
// data stand is a cursor of two numbers, so that a resumed run goes on where it stopped.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/data/records.h"

namespace wick {

// Sequences to run together. Row r of the batch (inputs laid end to end) is to predict
// targets[i] for r = target_rows[i].
struct MicroBatch {
  std::vector<std::vector<int32_t>> inputs;  // each sample without its last token
  std::vector<int32_t> target_rows;          // ascending
  std::vector<int32_t> targets;
  int64_t rows = 0;

  void add(const Sample& sample);
};

struct BatchOptions {
  int64_t batch_size = 8;  // sequences in a micro-batch
  int64_t batch_tokens =
      0;  // > 0: as many sequences as fit in so many tokens, in place of batch_size
  int64_t accumulation = 1;  // micro-batches in a step
  uint64_t seed = 0;
};

struct Cursor {
  int64_t epoch = 0;
  int64_t position = 0;  // samples of this epoch that have been taken

  friend bool operator==(const Cursor&, const Cursor&) = default;
};

class Batcher {
 public:
  // The samples must outlive the batcher.
  Batcher(std::span<const Sample> samples, const BatchOptions& options);

  // The micro-batches of the next step: at least one, at most options.accumulation.
  std::vector<MicroBatch> next_step();
  Cursor cursor() const { return cursor_; }
  void seek(const Cursor& cursor);
  int64_t steps_in_epoch(int64_t epoch) const;

 private:
  std::vector<uint32_t> order_of(int64_t epoch) const;
  // How many samples from `position` on make the next micro-batch.
  int64_t micro_batch_size(std::span<const uint32_t> order, int64_t position) const;

  std::span<const Sample> samples_;
  BatchOptions options_;
  Cursor cursor_;
  std::vector<uint32_t> order_;
};

// All samples in order, in micro-batches of at most `batch_tokens` rows (or one sample).
std::vector<MicroBatch> pack_in_order(std::span<const Sample> samples, int64_t batch_tokens);

}  // namespace wick
