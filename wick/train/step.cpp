// Sizes, inputs and keys of the steps that are recorded.
#include "wick/train/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

namespace wick {

namespace {

// At most an eighth more than `count`, so that few sizes occur and little is wasted.
int64_t padded(int64_t count, int64_t least) {
  const auto octave = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(count)));
  const int64_t grain = std::max(least, octave / 8);
  return (count + grain - 1) / grain * grain;
}

template <class T>
void upload_one(Backend& backend, T value, const Tensor& to) {
  backend.upload(std::as_bytes(std::span(&value, 1)), to);
}

void upload_padded(Backend& backend, const std::vector<int32_t>& values, int32_t filler,
                   const Tensor& to) {
  std::vector<int32_t> whole(static_cast<size_t>(to.elements()), filler);
  std::copy(values.begin(), values.end(), whole.begin());
  backend.upload(std::as_bytes(std::span(whole)), to);
}

}  // namespace

TrainStep::TrainStep(Decoder& decoder, AdamW& optimizer, uint64_t seed)
    : decoder_(decoder),
      backend_(decoder.backend()),
      optimizer_(optimizer),
      seed_(seed),
      micro_batch_(backend_.allocate({1}, DType::i32)),
      gradient_scale_(backend_.allocate({1}, DType::f32)),
      results_(backend_.allocate({2}, DType::f32)),
      recorder_(backend_.make_recorder()) {}

TrainStep::Sizes TrainStep::sizes_of(const HostBatch& batch, const MicroBatch& micro_batch) const {
  const auto targets = static_cast<int64_t>(micro_batch.targets.size());
  if (!recorder_->replays()) {
    return {batch.tokens(), batch.runs(), targets};
  }
  constexpr int64_t kRows = 32;
  constexpr uint64_t kRuns = 8;
  const int64_t tokens = padded(batch.tokens(), kRows);
  const auto runs = static_cast<uint64_t>(batch.runs() + (tokens > batch.tokens() ? 1 : 0));
  return {tokens, static_cast<int64_t>(std::bit_ceil(std::max(runs, kRuns))),
          padded(std::max<int64_t>(targets, 1), kRows)};
}

TrainStep::Inputs& TrainStep::inputs_of(const Sizes& sizes) {
  if (!recorder_->replays()) {
    inputs_.clear();
  }
  const auto [found, fresh] = inputs_.try_emplace(sizes);
  if (fresh) {
    const Shape targets{sizes.targets};
    found->second = {
        allocate_token_batch(backend_, sizes.tokens, sizes.runs),
        {backend_.allocate(targets, DType::i32), backend_.allocate(targets, DType::i32)},
        backend_.allocate(targets, DType::f32),
        static_cast<uint64_t>(inputs_.size())};
  }
  return found->second;
}

void TrainStep::upload_inputs(HostBatch host, const MicroBatch& batch, const Sizes& sizes,
                              Inputs& inputs) {
  decoder_.check_targets({batch.target_rows, batch.targets}, host.tokens());
  host.pad(sizes.tokens, sizes.runs);
  upload(backend_, host, inputs.tokens);
  decoder_.begin(inputs.tokens, nullptr);
  constexpr int32_t kIgnored = -1;
  upload_padded(backend_, batch.target_rows, 0, inputs.targets.rows);
  upload_padded(backend_, batch.targets, kIgnored, inputs.targets.targets);
}

void TrainStep::forward_and_backward(const Inputs& inputs) {
  const StepContext context{.training = true, .seed = seed_, .step = micro_batch_};
  Tape tape(backend_);
  {
    const Var hidden = decoder_.run(&tape, inputs.tokens, context, nullptr);
    decoder_.write_losses(&tape, hidden, inputs.targets, gradient_scale_, context, inputs.losses);
  }
  backend_.add_column_sums(inputs.losses.reshaped({inputs.losses.elements(), 1}),
                           results_.part(0, {1}));
  tape.backward();
}

StepResult TrainStep::run(std::span<const MicroBatch> batches, int64_t step, float learning_rate,
                          int64_t first_micro_batch) {
  StepResult result;
  for (const MicroBatch& batch : batches) {
    result.tokens += batch.rows;
    result.target_tokens += static_cast<int64_t>(batch.targets.size());
  }
  upload_one(backend_, 1.0F / static_cast<float>(result.target_tokens), gradient_scale_);
  optimizer_.prepare(step, learning_rate);
  for (size_t i = 0; i < batches.size(); ++i) {
    HostBatch host = lay_out(batches[i].inputs);
    const Sizes sizes = sizes_of(host, batches[i]);
    Inputs& inputs = inputs_of(sizes);
    upload_inputs(std::move(host), batches[i], sizes, inputs);
    upload_one(backend_, static_cast<int32_t>(first_micro_batch + static_cast<int64_t>(i)),
               micro_batch_);
    const bool first = i == 0;
    const bool last = i + 1 == batches.size();
    recorder_->run(inputs.id << 2 | (first ? 2U : 0U) | (last ? 1U : 0U), [&] {
      if (first) {
        optimizer_.clear_gradients();
        backend_.fill(0.0F, results_);
      }
      forward_and_backward(inputs);
      if (last) {
        optimizer_.update(results_.part(1, {1}));
      }
    });
  }
  std::array<float, 2> results{};
  backend_.download(results_, std::as_writable_bytes(std::span(results)));
  result.loss_sum = results[0];
  result.gradient_norm = std::sqrt(double{results[1]});
  return result;
}

}  // namespace wick
