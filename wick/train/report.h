// What a run tells while it goes on, and who listens.
//
// The trainer calls one Reporter. `ConsoleReporter` shows a progress bar or plain lines through the
// log; an embedding program derives its own. Files (metrics.jsonl, loss.svg) are written by the
// trainer whoever listens: see run_folder.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "wick/base/progress.h"
#include "wick/core/kernel_args.h"

namespace wick {

// What is about to happen, once all is loaded.
struct TrainPlan {
  std::string what;  // "lora: rank 16, alpha 32, ..." in words
  int64_t trainable_parameters = 0;
  int64_t all_parameters = 0;  // the trainable ones included
  int64_t first_step = 0;      // > 0 when resumed
  int64_t total_steps = 0;
  double epochs = 0;
  int64_t samples = 0;
  int processes = 1;  // that train together
  MatmulPrecision matmul_precision = MatmulPrecision::highest;
  int64_t warmup_steps = 0;
  double learning_rate = 0;
  std::string schedule;
};

// One step, or the steps since the last report.
struct Metrics {
  int64_t step = 0;  // steps done
  int64_t total_steps = 0;
  double epoch = 0;              // passes over the data so far: 1.5 is halfway through the second
  double loss = 0;               // nats a target token, mean over the target tokens of the steps
  double learning_rate = 0;      // of the last step
  double gradient_norm = 0;      // of the last step, before clipping
  double tokens_per_second = 0;  // all tokens run forward and backward, by wall time; validation
                                 // and saving are not counted
  double target_tokens_per_second = 0;
  int64_t tokens = 0;  // since the first step, over resumes
  int64_t target_tokens = 0;
  double seconds = 0;               // wall time of this process since training began
  uint64_t peak_backend_bytes = 0;  // most memory that tensors took at one time
  uint64_t peak_process_bytes = 0;  // largest resident size of the process
};

struct Validation {
  std::string set;  // "valid" or "test"
  int64_t step = 0;
  double loss = 0;  // nats a target token
  double perplexity = 0;
  int64_t target_tokens = 0;
  double seconds = 0;
};

class Reporter {
 public:
  virtual ~Reporter() = default;
  virtual void on_start(const TrainPlan&) {}
  virtual void on_step(const Metrics&) {}    // each step
  virtual void on_report(const Metrics&) {}  // every TrainOptions::report_every steps, and the last
  virtual void on_validation(const Validation&) {}
  virtual void on_saved(int64_t /*step*/, const std::filesystem::path& /*folder*/) {}
  // Asked after each step; true saves and ends the run. On a GPU one more step may be under way by
  // then, which is done first.
  virtual bool should_stop() { return false; }
};

class ConsoleReporter : public Reporter {
 public:
  void on_start(const TrainPlan& plan) override;
  void on_step(const Metrics& metrics) override;
  void on_report(const Metrics& metrics) override;
  void on_validation(const Validation& validation) override;

 private:
  std::unique_ptr<Progress> bar_;
};

// Largest resident size of this process so far.
uint64_t peak_process_bytes();

}  // namespace wick
