// Sizes, inputs and keys of the steps that are recorded.
#include "wick/train/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
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

// Keys of recorded work without inputs; those of inputs begin at 4.
constexpr uint64_t kUpdate = 1;
constexpr uint64_t kBegin = 2;

// What dropout draws by: the parts of one micro-batch must not draw the same numbers.
int32_t number_of(const StepPart& part, int64_t first_micro_batch) {
  constexpr int64_t kMicroBatches = int64_t{1} << 24;
  return static_cast<int32_t>(first_micro_batch + part.micro_batch + part.part * kMicroBatches);
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

TrainStep::TrainStep(Decoder& decoder, AdamW& optimizer, uint64_t seed, Communicator& ranks)
    : decoder_(decoder),
      backend_(decoder.backend()),
      optimizer_(optimizer),
      seed_(seed),
      ranks_(ranks),
      micro_batch_(backend_.allocate({1}, DType::i32)),
      gradient_scale_(backend_.allocate({1}, DType::f32)),
      results_(backend_.allocate({2}, DType::f32)),
      recorder_(backend_.make_recorder()) {
  for (Begun& begun : begun_) {
    begun.readback = backend_.make_readback(results_.bytes());
  }
}

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

void TrainStep::begin_passes() {
  optimizer_.clear_gradients();
  backend_.fill(0.0F, results_);
}

void TrainStep::run_passes(std::span<const StepPart> parts, int64_t first_micro_batch) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const MicroBatch& batch = parts[i].batch;
    HostBatch host = lay_out(batch.inputs);
    const Sizes sizes = sizes_of(host, batch);
    Inputs& inputs = inputs_of(sizes);
    upload_inputs(std::move(host), batch, sizes, inputs);
    upload_one(backend_, number_of(parts[i], first_micro_batch), micro_batch_);
    const bool first = i == 0;
    const bool updates = alone() && i + 1 == parts.size();
    recorder_->run(inputs.id << 2 | (first ? kBegin : 0) | (updates ? kUpdate : 0), [&] {
      if (first) {
        begin_passes();
      }
      forward_and_backward(inputs);
      if (updates) {
        update();
      }
    });
  }
  if (parts.empty()) {
    recorder_->run(kBegin, [&] { begin_passes(); });
  }
}

void TrainStep::begin(std::span<const MicroBatch> batches, int64_t step, float learning_rate,
                      int64_t first_micro_batch) {
  assert(begins_ - finishes_ < (runs_ahead() ? 2 : 1));
  Begun& begun = begun_[begins_ % 2];
  begun.result = {};
  for (const MicroBatch& batch : batches) {
    begun.result.tokens += batch.rows;
    begun.result.target_tokens += static_cast<int64_t>(batch.targets.size());
  }
  upload_one(backend_, 1.0F / static_cast<float>(begun.result.target_tokens), gradient_scale_);
  optimizer_.prepare(step, learning_rate);
  run_passes(share_of_step(batches, ranks_.place().rank, ranks_.place().size), first_micro_batch);
  if (!alone()) {
    ranks_.sum(backend_, optimizer_.gradients());
    recorder_->run(kUpdate, [&] { update(); });
  }
  begun.readback->begin(results_);
  ++begins_;
}

StepResult TrainStep::finish() {
  assert(finishes_ < begins_);
  Begun& begun = begun_[finishes_ % 2];
  ++finishes_;
  std::array<float, 2> results{};
  begun.readback->take(std::as_writable_bytes(std::span(results)));
  begun.result.loss_sum = sum_of(ranks_.gather(results[0]));
  begun.result.gradient_norm = std::sqrt(double{results[1]});
  return begun.result;
}

StepResult TrainStep::run(std::span<const MicroBatch> batches, int64_t step, float learning_rate,
                          int64_t first_micro_batch) {
  begin(batches, step, learning_rate, first_micro_batch);
  return finish();
}

}  // namespace wick
