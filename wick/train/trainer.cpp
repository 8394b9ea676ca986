// The training loop. On a GPU it asks for a step before it reads the loss of the one before, unless
// something is due between them.
#include "wick/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>

#include "wick/base/error.h"
#include "wick/base/log.h"
#include "wick/train/evaluate.h"
#include "wick/train/plan.h"
#include "wick/train/step.h"
#include "wick/train/train_state.h"
#include "wick/train/trained_weights.h"

namespace wick {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sums over some steps of this process.
struct Work {
  StepResult totals;
  double seconds = 0;  // of training alone

  void add(const Work& other) {
    totals.loss_sum += other.totals.loss_sum;
    totals.tokens += other.totals.tokens;
    totals.target_tokens += other.totals.target_tokens;
    seconds += other.seconds;
  }
};

// A step that was asked for, and where the run stands after it.
struct BegunStep {
  double learning_rate = 0;
  Cursor cursor;
  uint64_t peak_backend_bytes = 0;
};

double mean_loss(double sum, int64_t target_tokens) {
  return sum / static_cast<double>(target_tokens);
}

class Trainer {
 public:
  Trainer(Bundle& bundle, const TrainData& data, const TrainOptions& options, Reporter& reporter,
          Communicator& ranks);
  TrainResult run();

 private:
  bool leads() const { return ranks_.place().rank == 0; }
  StateTensors state_tensors() const;
  void open_folder();
  TrainResult run_steps();
  bool should_stop();
  std::string what_is_kept() const;
  int64_t all_parameters() const;
  void announce();
  bool due(int64_t every, int64_t step) const { return every > 0 && step % every == 0; }
  bool validates_after(int64_t step) const;
  bool may_run_ahead();
  void begin_step();
  Work finish_step();
  void check_finite(double value, const char* what) const;
  Metrics metrics_of(const Work& work, double loss) const;
  double report();
  Validation validate(const char* set, const Dataset& data);
  void save();

  Decoder& decoder_;
  Backend& backend_;
  const TrainData& data_;
  const TrainOptions& options_;
  Reporter& reporter_;
  Communicator& ranks_;
  std::unique_ptr<TrainedWeights> weights_;
  AdamW optimizer_;
  TrainStep step_;
  Batcher batcher_;
  Schedule schedule_;
  std::optional<RunFolder> folder_;  // of rank 0

  TrainState state_;
  int64_t saved_step_ = -1;
  std::optional<MetricsFile> metrics_file_;
  Work since_report_;
  Work whole_;
  double last_norm_ = 0;
  double last_rate_ = 0;
  uint64_t last_peak_bytes_ = 0;
  std::deque<BegunStep> begun_;  // after state_.step, at most two
  bool asked_to_stop_ = false;
  Clock::time_point timed_until_;  // while steps are under way: their time is counted up to here
  Clock::time_point start_ = Clock::now();
};

std::unique_ptr<TrainedWeights> weights_to_train(Bundle& bundle, const TrainOptions& options) {
  if (options.type == TrainType::full) {
    return train_all_weights(bundle, options.saved_dtype);
  }
  return train_adapter(bundle, options.adapter, options.seed);
}

AdamWOptions adam_of(const TrainOptions& options) {
  AdamWOptions adam = options.adam;
  adam.max_gradient_norm = static_cast<float>(options.max_gradient_norm);
  return adam;
}

Trainer::Trainer(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                 Reporter& reporter, Communicator& ranks)
    : decoder_(*bundle.decoder),
      backend_(decoder_.backend()),
      data_(data),
      options_(options),
      reporter_(reporter),
      ranks_(ranks),
      weights_(weights_to_train(bundle, options)),
      optimizer_(backend_, weights_->values(), weights_->gradients(),
                 weights_->groups(static_cast<float>(options.weight_decay)), adam_of(options)),
      step_(decoder_, optimizer_, options.seed, ranks),
      batcher_(data.train.samples, batch_options_of(options)),
      schedule_(plan_schedule(options, batcher_)) {
  state_.identity = identity_of(options, data.train, weights_->values().elements());
  state_.identity["matmul precision"] = name_of(decoder_.matmul_precision());
  check_same_run(ranks_, state_.identity);
  ranks_.gather(0);  // options that cannot work, even if in one process, leave no folder behind
  if (leads()) {
    open_folder();
  }
  share_train_state(ranks_, backend_, state_, state_tensors());
  batcher_.seek(state_.cursor);
  saved_step_ = state_.step > 0 ? state_.step : -1;
}

void Trainer::open_folder() {
  folder_.emplace(options_.output, options_.start);
  if (folder_->resumes()) {
    state_ = load_train_state(backend_, folder_->state_file(), state_.identity, state_tensors());
  }
  metrics_file_.emplace(folder_->metrics_file(), state_.step);
}

StateTensors Trainer::state_tensors() const {
  return {optimizer_.values(), optimizer_.first_moment(), optimizer_.second_moment()};
}

int64_t Trainer::all_parameters() const {
  int64_t count = options_.type == TrainType::full ? 0 : weights_->parameters();
  for (const Parameter* parameter : decoder_.parameters()) {
    count += parameter->value.elements();
  }
  return count;
}

void Trainer::announce() {
  TrainPlan plan;
  plan.what = weights_->describe();
  plan.trainable_parameters = weights_->parameters();
  plan.all_parameters = all_parameters();
  plan.first_step = state_.step;
  plan.total_steps = schedule_.total_steps;
  plan.epochs =
      static_cast<double>(schedule_.total_steps) / static_cast<double>(batcher_.steps_in_epoch(0));
  plan.samples = static_cast<int64_t>(data_.train.samples.size());
  plan.processes = ranks_.place().size;
  plan.matmul_precision = decoder_.matmul_precision();
  plan.warmup_steps = schedule_.warmup_steps;
  plan.learning_rate = options_.learning_rate;
  plan.schedule = name_of(schedule_.decay);
  reporter_.on_start(plan);
}

void Trainer::check_finite(double value, const char* what) const {
  if (std::isfinite(value)) {
    return;
  }
  fail(
      "step {}: the {} is {}; training stops, {}. A lower --learning-rate or a longer warm-up may "
      "help",
      state_.step + 1, what, std::isnan(value) ? "not a number" : "infinite", what_is_kept());
}

std::string Trainer::what_is_kept() const {
  return saved_step_ < 0 ? "nothing had been saved yet"
                         : fmt::format("what step {} saved in {} is kept", saved_step_,
                                       options_.output.string());
}

void Trainer::begin_step() {
  if (begun_.empty()) {
    timed_until_ = Clock::now();
  }
  const int64_t before = state_.step + static_cast<int64_t>(begun_.size());
  const std::vector<MicroBatch> batches = batcher_.next_step();
  BegunStep begun;
  begun.learning_rate = options_.learning_rate * schedule_.factor(before);
  step_.begin(batches, before + 1, static_cast<float>(begun.learning_rate),
              before * options_.accumulation);
  begun.cursor = batcher_.cursor();
  begun.peak_backend_bytes = backend_.memory().peak_bytes;
  begun_.push_back(begun);
}

Work Trainer::finish_step() {
  const BegunStep begun = begun_.front();
  Work work;
  work.totals = step_.finish();
  begun_.pop_front();
  last_rate_ = begun.learning_rate;
  last_norm_ = work.totals.gradient_norm;
  last_peak_bytes_ = begun.peak_backend_bytes;
  check_finite(work.totals.loss_sum, "loss");
  check_finite(last_norm_, "gradient norm");

  ++state_.step;
  state_.cursor = begun.cursor;
  state_.tokens += work.totals.tokens;
  state_.target_tokens += work.totals.target_tokens;
  state_.window_loss_sum += work.totals.loss_sum;
  state_.window_target_tokens += work.totals.target_tokens;
  const Clock::time_point now = Clock::now();
  work.seconds = std::chrono::duration<double>(now - timed_until_).count();
  timed_until_ = now;
  return work;
}

Metrics Trainer::metrics_of(const Work& work, double loss) const {
  Metrics metrics;
  metrics.step = state_.step;
  metrics.total_steps = schedule_.total_steps;
  metrics.epoch =
      static_cast<double>(state_.cursor.epoch) +
      static_cast<double>(state_.cursor.position) / static_cast<double>(data_.train.samples.size());
  metrics.loss = loss;
  metrics.learning_rate = last_rate_;
  metrics.gradient_norm = last_norm_;
  const double seconds = std::max(work.seconds, 1e-9);
  metrics.tokens_per_second = static_cast<double>(work.totals.tokens) / seconds;
  metrics.target_tokens_per_second = static_cast<double>(work.totals.target_tokens) / seconds;
  metrics.tokens = state_.tokens;
  metrics.target_tokens = state_.target_tokens;
  metrics.seconds = seconds_since(start_);
  metrics.peak_backend_bytes = last_peak_bytes_;
  metrics.peak_process_bytes = peak_process_bytes();
  return metrics;
}

double Trainer::report() {
  const double loss = mean_loss(state_.window_loss_sum, state_.window_target_tokens);
  if (leads()) {
    const Metrics metrics = metrics_of(since_report_, loss);
    metrics_file_->append(metrics);
    reporter_.on_report(metrics);
  }
  since_report_ = {};
  state_.window_loss_sum = 0;
  state_.window_target_tokens = 0;
  return loss;
}

Validation Trainer::validate(const char* set, const Dataset& data) {
  const Evaluation evaluation = evaluate(decoder_, data.samples, ranks_);
  Validation validation;
  validation.set = set;
  validation.step = state_.step;
  validation.loss = evaluation.loss;
  validation.perplexity = evaluation.perplexity;
  validation.target_tokens = evaluation.target_tokens;
  validation.seconds = evaluation.seconds;
  if (leads()) {
    metrics_file_->append(validation);
    reporter_.on_validation(validation);
  }
  return validation;
}

void Trainer::save() {
  if (leads()) {
    // The state first: a run that is killed between the two goes on from it, and ends by writing
    // the weights. Weights of a first save without a state could not be gone on from.
    save_train_state(backend_, folder_->state_file(), state_, state_tensors());
    weights_->save(folder_->path());
    metrics_file_->write_chart(folder_->chart_file());
    saved_step_ = state_.step;
    reporter_.on_saved(state_.step, folder_->path());
  }
  ranks_.gather(0);  // rank 0 has written it
  saved_step_ = state_.step;
}

bool Trainer::should_stop() {
  asked_to_stop_ = sum_of(ranks_.gather(asked_to_stop_ || reporter_.should_stop() ? 1 : 0)) > 0;
  return asked_to_stop_;
}

bool Trainer::validates_after(int64_t step) const {
  return data_.valid && due(options_.validate_every, step);
}

// Whether the step after the one under way may begin: nothing that needs the state between the two
// is due, and nobody wants the run to end there.
bool Trainer::may_run_ahead() {
  const int64_t next = state_.step + 1;
  return step_.runs_ahead() && next < schedule_.total_steps && !validates_after(next) &&
         !due(options_.save_every, next) && !should_stop();
}

TrainResult Trainer::run() {
  try {
    return run_steps();
  } catch (const RankLost& lost) {
    throw RankLost(fmt::format("step {}: {}; training stops, {}", state_.step + 1, lost.what(),
                               what_is_kept()));
  }
}

TrainResult Trainer::run_steps() {
  backend_.reset_peak_memory();
  if (leads()) {
    announce();
  }
  TrainResult result;
  while (state_.step < schedule_.total_steps && !result.interrupted) {
    if (begun_.empty()) {
      begin_step();
    }
    if (may_run_ahead()) {
      begin_step();
    }
    const Work work = finish_step();
    since_report_.add(work);
    whole_.add(work);
    if (leads()) {
      reporter_.on_step(
          metrics_of(work, mean_loss(work.totals.loss_sum, work.totals.target_tokens)));
    }
    const bool last = state_.step == schedule_.total_steps;
    if (last || due(options_.report_every, state_.step)) {
      result.loss = report();
    }
    if (last || !begun_.empty()) {
      continue;
    }
    if (validates_after(state_.step)) {
      result.valid = validate("valid", *data_.valid);
    }
    result.interrupted = should_stop();
    if (!result.interrupted && due(options_.save_every, state_.step)) {
      save();
    }
  }
  if (!result.interrupted) {
    if (data_.valid) {
      result.valid = validate("valid", *data_.valid);
    }
    if (data_.test) {
      result.test = validate("test", *data_.test);
    }
  }
  save();
  last_peak_bytes_ = backend_.memory().peak_bytes;
  const Metrics end = metrics_of(whole_, result.loss);
  result.step = state_.step;
  result.seconds = end.seconds;
  result.tokens_per_second = end.tokens_per_second;
  result.peak_backend_bytes = end.peak_backend_bytes;
  result.peak_process_bytes = end.peak_process_bytes;
  return result;
}

}  // namespace

TrainResult train(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                  Reporter& reporter) {
  Alone alone;
  return train(bundle, data, options, reporter, alone);
}

TrainResult train(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                  Reporter& reporter, Communicator& ranks) {
  return together(ranks, [&] {
    check_run(bundle, data, options);
    return Trainer(bundle, data, options, reporter, ranks).run();
  });
}

}  // namespace wick
