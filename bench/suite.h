// Runs cases and prints them as a table or as JSON; answers the requests of bench/compare.py.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/machine.h"
#include "wick/core/backend.h"

namespace wick::bench {

struct SuiteOptions {
  std::string suite = "all";  // "training", "inference" or "all"
  std::string filter;         // only cases whose name contains this
  bool heavy = false;         // whole models too
};

// {"cases": [{name, suite, flops, bytes, tokens, heavy}]}
nlohmann::ordered_json list_cases(const SuiteOptions& options);
nlohmann::ordered_json to_json(const MachineLimits& limits);

// Proves, times and prints each case, a line each, to `out` as it goes; returns all samples.
// Throws Error where a result is wrong: a wrong result has no time.
nlohmann::ordered_json run_suite(Backend& backend, const MachineLimits& limits,
                                 const SuiteOptions& options, std::ostream& out);

// A line of JSON in, a line of JSON out, until `in` ends; the protocol is in bench/peers/worker.py.
void answer_requests(Backend& backend, int threads, std::istream& in, std::ostream& out);

}  // namespace wick::bench
