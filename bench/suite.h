// Runs cases and prints them as a table or as JSON; answers the requests of bench/compare.py.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/case.h"
#include "bench/machine.h"
#include "wick/backend/profile.h"
#include "wick/core/backend.h"

namespace wick::bench {

struct SuiteOptions {
  std::string suite = "all";   // "training", "inference" or "all"
  std::string filter;          // only cases whose name contains this
  bool heavy = false;          // whole models too
  std::string shape;           // only whole models of this shape ("qwen2.5-0.5b"); empty: all
  std::string device = "cpu";  // whose cases to list
  Profile* profile = nullptr;  // of the devices: counts the timed calls, and those alone
};

// One device as two back ends, which may be one and the same: whole models run at the matmul
// precision that `wick train` and `wick generate` would choose, all else at highest.
struct Devices {
  Devices(Backend& one) : exact(one), models(one) {}  // NOLINT(google-explicit-constructor)
  Devices(Backend& kernels, Backend& of_models) : exact(kernels), models(of_models) {}
  Backend& of(const Case& c) const { return c.heavy ? models : exact; }

  Backend& exact;
  Backend& models;
};

// Cases below this are too short to gain from a second thread.
constexpr double kScalingFlops = 1e6;

// {"cases": [{name, suite, flops, bytes, tokens, heavy}]}
nlohmann::ordered_json list_cases(const SuiteOptions& options);
nlohmann::ordered_json to_json(const MachineLimits& limits);

// Proves, times and prints each case, a line each, to `out` as it goes; returns all samples.
// Throws Error where a result is wrong: a wrong result has no time.
nlohmann::ordered_json run_suite(const Devices& devices, const MachineLimits& limits,
                                 const SuiteOptions& options, std::ostream& out);

// Times every case of kScalingFlops or more with one thread and with all, taking turns, a line each
// to `out`. Beside each small case, in the same turns, the same of BareWork, with `pool` for
// all: what the machine itself gave at that time. Returns {"cases": [{name, one_seconds,
// all_seconds, bare_one_seconds, bare_all_seconds}]}, the last two for small cases only.
nlohmann::ordered_json run_scaling(const Devices& one, const Devices& all, ThreadPool& pool,
                                   const SuiteOptions& options, std::ostream& out);

// Calls each selected case so many times, unproved and untimed: for tools/count_instructions.py.
void repeat_cases(Backend& backend, const SuiteOptions& options, int calls);

// A line of JSON in, a line of JSON out, until `in` ends; the protocol is in bench/peers/worker.py.
void answer_requests(const Devices& devices, int threads, std::istream& in, std::ostream& out);

}  // namespace wick::bench
