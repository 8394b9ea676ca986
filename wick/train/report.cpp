// Lines and the bar.
#include "wick/train/report.h"

#include <sys/resource.h>

#include "wick/base/log.h"

namespace wick {

void ConsoleReporter::on_start(const TrainPlan& plan) {
  log_info("training {}", plan.what);
  log_info("  {} of {} parameters are trained ({:.2f} %)",
           format_count(static_cast<double>(plan.trainable_parameters)),
           format_count(static_cast<double>(plan.all_parameters)),
           100.0 * static_cast<double>(plan.trainable_parameters) /
               static_cast<double>(plan.all_parameters));
  log_info("  {} samples, {} steps ({:.3g} epochs), learning rate {:.3g} ({}, {} warm-up steps)",
           plan.samples, plan.total_steps, plan.epochs, plan.learning_rate, plan.schedule,
           plan.warmup_steps);
  log_info("  matmul precision {}: {}", name_of(plan.matmul_precision),
           plan.matmul_precision == MatmulPrecision::medium
               ? "activations and gradients are rounded to bf16 for products with the weights"
               : "products are f32");
  if (plan.processes > 1) {
    log_info("  {} processes", plan.processes);
  }
  if (plan.first_step > 0) {
    log_info("  resumed after step {}", plan.first_step);
  }
  bar_ = std::make_unique<Progress>("training", plan.total_steps, 0.0);
  bar_->update(plan.first_step);
}

void ConsoleReporter::on_step(const Metrics& metrics) {
  if (bar_) {
    bar_->update(metrics.step,
                 fmt::format("step {}/{}  loss {:.4f}  {} tok/s", metrics.step, metrics.total_steps,
                             metrics.loss, format_count(metrics.tokens_per_second)));
  }
}

void ConsoleReporter::on_report(const Metrics& metrics) {
  if (has_status_line()) {
    return;  // the bar shows it
  }
  log_info("step {}/{}  loss {:.4f}  lr {:.3g}  grad norm {:.3g}  {} tok/s ({} learnt)",
           metrics.step, metrics.total_steps, metrics.loss, metrics.learning_rate,
           metrics.gradient_norm, format_count(metrics.tokens_per_second),
           format_count(metrics.target_tokens_per_second));
}

void ConsoleReporter::on_validation(const Validation& validation) {
  log_info("step {}  {} loss {:.4f}  perplexity {:.4g}  ({} tokens, {:.1f} s)", validation.step,
           validation.set, validation.loss, validation.perplexity,
           format_count(static_cast<double>(validation.target_tokens)), validation.seconds);
}

uint64_t peak_process_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return static_cast<uint64_t>(usage.ru_maxrss);
#else
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
#endif
}

}  // namespace wick
