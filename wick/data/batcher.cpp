// Shuffling and packing.
#include "wick/data/batcher.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "wick/base/error.h"
#include "wick/data/random_streams.h"

namespace wick {

namespace {

int64_t rows_of(const Sample& sample) {
  return static_cast<int64_t>(sample.ids.size()) - 1;
}

}  // namespace

void MicroBatch::add(const Sample& sample) {
  for (size_t i = 1; i < sample.ids.size(); ++i) {
    if (sample.is_target[i] != 0) {
      target_rows.push_back(static_cast<int32_t>(rows + static_cast<int64_t>(i) - 1));
      targets.push_back(sample.ids[i]);
    }
  }
  inputs.emplace_back(sample.ids.begin(), sample.ids.end() - 1);
  rows += rows_of(sample);
}

Batcher::Batcher(std::span<const Sample> samples, const BatchOptions& options)
    : samples_(samples), options_(options) {
  check(!samples.empty() && samples.size() <= std::numeric_limits<int32_t>::max(),
        "batches: {} samples; between 1 and 2^31 can be used", samples.size());
  check(options.batch_tokens > 0 || options.batch_size > 0, "batch size: {}; at least 1 is needed",
        options.batch_size);
  check(options.accumulation > 0, "gradient accumulation: {}; at least 1 is needed",
        options.accumulation);
  order_ = order_of(0);
}

std::vector<uint32_t> Batcher::order_of(int64_t epoch) const {
  std::vector<uint32_t> order(samples_.size());
  std::iota(order.begin(), order.end(), 0U);
  shuffle(order, Random(options_.seed, streams::kShuffle + static_cast<uint64_t>(epoch)));
  return order;
}

int64_t Batcher::micro_batch_size(std::span<const uint32_t> order, int64_t position) const {
  const auto left = static_cast<int64_t>(order.size()) - position;
  if (options_.batch_tokens <= 0) {
    return std::min(options_.batch_size, left);
  }
  int64_t count = 1;
  int64_t rows = rows_of(samples_[order[static_cast<size_t>(position)]]);
  while (count < left) {
    rows += rows_of(samples_[order[static_cast<size_t>(position + count)]]);
    if (rows > options_.batch_tokens) {
      break;
    }
    ++count;
  }
  return count;
}

std::vector<MicroBatch> Batcher::next_step() {
  const auto total = static_cast<int64_t>(samples_.size());
  if (cursor_.position == total) {
    seek({cursor_.epoch + 1, 0});
  }
  std::vector<MicroBatch> step;
  for (int64_t i = 0; i < options_.accumulation && cursor_.position < total; ++i) {
    const int64_t count = micro_batch_size(order_, cursor_.position);
    MicroBatch& batch = step.emplace_back();
    for (int64_t j = 0; j < count; ++j) {
      batch.add(samples_[order_[static_cast<size_t>(cursor_.position + j)]]);
    }
    cursor_.position += count;
  }
  return step;
}

void Batcher::seek(const Cursor& cursor) {
  check(cursor.epoch >= 0 && cursor.position >= 0 &&
            cursor.position <= static_cast<int64_t>(samples_.size()),
        "batches: position {} of epoch {} lies outside {} samples", cursor.position, cursor.epoch,
        samples_.size());
  cursor_ = cursor;
  order_ = order_of(cursor.epoch);
}

int64_t Batcher::steps_in_epoch(int64_t epoch) const {
  const auto total = static_cast<int64_t>(samples_.size());
  int64_t micro_batches = 0;
  if (options_.batch_tokens <= 0) {
    micro_batches = (total + options_.batch_size - 1) / options_.batch_size;
  } else {
    const std::vector<uint32_t> order = order_of(epoch);
    for (int64_t position = 0; position < total; ++micro_batches) {
      position += micro_batch_size(order, position);
    }
  }
  return (micro_batches + options_.accumulation - 1) / options_.accumulation;
}

std::vector<MicroBatch> pack_in_order(std::span<const Sample> samples, int64_t batch_tokens) {
  std::vector<MicroBatch> batches;
  for (const Sample& sample : samples) {
    if (batches.empty() || batches.back().rows + rows_of(sample) > batch_tokens) {
      batches.emplace_back();
    }
    batches.back().add(sample);
  }
  return batches;
}

}  // namespace wick
