// What is timed: named cases, each able to prove its result before its time counts.
//
// A case is named `kind:key=value,...` ("lora_delta:T=64,d=1024,r=8"); the peers' workers parse the
// same name. The call of a prepared case is one awaited piece of work through the seam or the
// decoder, as `wick train` and `wick generate` run it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"

namespace wick::bench {

struct PreparedCase {
  std::function<void()> call;
  // The largest error of the call's result against the scalar reference in double precision,
  // relative to the largest value of that result. Empty for whole models, whose results the test
  // suite proves against PyTorch's.
  std::function<double()> error;
};

struct Case {
  std::string suite;  // "training" or "inference"
  std::string name;
  double flops = 0;   // that the work must do
  double bytes = 0;   // that it must move, each input and output once
  double tokens = 0;  // for whole models
  bool heavy =
      false;  // seconds a call, gigabytes of memory: timed few times, in a process of its own
  bool fits_cache = true;  // the share of the memory bandwidth means something only if not
  std::function<PreparedCase(Backend&)> prepare;
};

std::vector<Case> lora_cases();
std::vector<Case> rowwise_cases();
std::vector<Case> sampling_cases();
std::vector<Case> model_cases();
std::vector<Case> all_cases();
// Of the public models whose shapes model_cases() has.
std::vector<std::string> shape_names();

// Largest error that a kernel may have to be timed at all.
constexpr double kErrorLimit = 2e-5;

}  // namespace wick::bench
