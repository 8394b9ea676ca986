// The timing loops behind measure.h.
#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <iterator>

namespace wick::bench {

namespace {

using Clock = std::chrono::steady_clock;

double timed(const std::function<void()>& call) {
  const Clock::time_point start = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double Timing::median() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
}

double Timing::minimum() const {
  return *std::min_element(seconds.begin(), seconds.end());
}

Timing measure(const std::function<void()>& call, const MeasureOptions& options) {
  return measure_interleaved({&call, 1}, options).front();
}

std::vector<Timing> measure_interleaved(std::span<const std::function<void()>> calls,
                                        const MeasureOptions& options) {
  const auto warm_up = [&](const std::function<void()>& call) {
    double spent = 0;
    for (int i = 0; i < options.warm_up_calls || spent < options.warm_up_seconds; ++i) {
      spent += timed(call);
    }
  };
  if (options.samples_of_turn == 1) {
    std::ranges::for_each(calls, warm_up);
  }
  std::vector<Timing> timings(calls.size());
  std::vector<double> totals(calls.size(), 0.0);
  for (;;) {
    const double least = *std::min_element(totals.begin(), totals.end());
    const double most = *std::max_element(totals.begin(), totals.end());
    const auto all_have = [&](int samples) {
      return std::ranges::all_of(timings, [samples](const Timing& timing) {
        return std::ssize(timing.seconds) >= samples;
      });
    };
    const bool enough = all_have(options.minimum_samples) && least >= options.minimum_seconds;
    if (enough || (all_have(options.fewest_samples) && most >= options.maximum_seconds)) {
      return timings;
    }
    for (size_t i = 0; i < calls.size(); ++i) {
      if (options.samples_of_turn > 1) {
        warm_up(calls[i]);
      }
      double of_turn = 0;
      for (int k = 0; k < options.samples_of_turn || of_turn < options.seconds_of_turn; ++k) {
        const double seconds = timed(calls[i]);
        timings[i].seconds.push_back(seconds);
        of_turn += seconds;
      }
      totals[i] += of_turn;
    }
  }
}

}  // namespace wick::bench
