// What is timed: named cases, each able to prove its result before its time counts.
//
// A case is named `kind:key=value,...` ("lora_delta:T=64,d=1024,r=8"); the peers' workers parse the
// same name. The call of a prepared case is one awaited piece of work through the seam or the
// decoder, as `wick train` and `wick generate` run it. `in=graph`: 100 repetitions that a Recorder
// replays, awaited together.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"

namespace wick::bench {

// The largest errors that a kernel may have to be timed at all: in f32, and where results are
// stored in bf16, of 8 bits each.
constexpr double kErrorLimit = 2e-5;
constexpr double kBf16ErrorLimit = 1e-2;

struct PreparedCase {
  std::function<void()> call;
  // The largest error of the call's result against the scalar reference in double precision,
  // relative to the largest value of that result. Empty for whole models, whose results the test
  // suite proves against PyTorch's.
  std::function<double()> error;
  // The kernels of `call` alone, not awaited, as a Recorder takes them; empty where a call is more.
  std::function<void()> work;
  // Of a whole model's products with the weights.
  std::optional<MatmulPrecision> matmul_precision;
  int repeats = 1;  // of the work in one call: a time is that of one
  // Figures beside the time, of the last call.
  std::function<std::map<std::string, double>()> extra;
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
  double error_limit = kErrorLimit;
  std::function<PreparedCase(Backend&)> prepare;
};

std::vector<Case> lora_cases();
std::vector<Case> rowwise_cases();
std::vector<Case> sampling_cases();
std::vector<Case> model_cases();
std::vector<Case> all_cases();  // that are timed on the CPU
// Those for a GPU: also in bf16, and each small one a second time in a graph.
std::vector<Case> gpu_cases();
// Of the public models whose shapes model_cases() has.
std::vector<std::string> shape_names();

}  // namespace wick::bench
