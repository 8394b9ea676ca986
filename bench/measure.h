// How wick takes a time: completed work only, many samples, several candidates interleaved.
//
// A sample is one awaited call (the callable ends with whatever synchronises it). Candidates of one
// comparison take turns, so that a change in the machine's load meets all of them. Report the
// median and the minimum, never one run.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace wick::bench {

struct MeasureOptions {
  int minimum_samples = 20;
  double minimum_seconds = 0.25;  // of one candidate; sampling goes on until both minima are met
  double maximum_seconds = 20.0;  // of one candidate, where fewest_samples allow it
  int fewest_samples = 3;
  int warm_up_calls = 2;
  double warm_up_seconds = 0;  // more calls, where those took less
  // Candidates take turns of at least so many samples and seconds. Turns of more than one sample
  // begin with the warm-up again: a pool of threads has fallen asleep while another candidate had
  // its turn, and a core of a virtual machine takes up to a millisecond to come back.
  int samples_of_turn = 1;
  double seconds_of_turn = 0;
};

struct Timing {
  std::vector<double> seconds;  // one a sample, in the order taken

  double median() const;
  double minimum() const;
};

Timing measure(const std::function<void()>& call, const MeasureOptions& options = {});
// The candidates take turns, one call each.
std::vector<Timing> measure_interleaved(std::span<const std::function<void()>> calls,
                                        const MeasureOptions& options = {});

}  // namespace wick::bench
