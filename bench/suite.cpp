// The suites: proof, timing, table and JSON.
#include "bench/suite.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <istream>
#include <ostream>

#include "bench/case.h"
#include "bench/measure.h"
#include "wick/base/error.h"

namespace wick::bench {

using Json = nlohmann::ordered_json;

namespace {

bool selected(const Case& c, const SuiteOptions& options) {
  return (options.suite == "all" || options.suite == c.suite) &&
         c.name.find(options.filter) != std::string::npos;
}

Json describe(const Case& c) {
  return {{"name", c.name},   {"suite", c.suite},   {"flops", c.flops},
          {"bytes", c.bytes}, {"tokens", c.tokens}, {"heavy", c.heavy}};
}

void prove(const Case& c, const PreparedCase& prepared) {
  if (prepared.error) {
    const double error = prepared.error();
    check(error <= kErrorLimit,
          "bench: {}: the result is off by {:.2e} of its largest value, at most {:.0e} is allowed",
          c.name, error, kErrorLimit);
  }
}

int64_t peak_rss_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

std::string line_of(const Case& c, const Timing& timing, const MachineLimits& limits) {
  const double best = timing.minimum();
  std::string line =
      fmt::format("{:<46} {:>11.1f} {:>11.1f}", c.name, timing.median() * 1e6, best * 1e6);
  if (c.flops > 0) {
    const double gflops = c.flops / best * 1e-9;
    line +=
        fmt::format(" {:>8.1f} GF/s {:>4.0f} %", gflops, 100.0 * gflops / limits.fma_gflops_all);
  }
  if (c.bytes > 0) {
    const double gbs = c.bytes / best * 1e-9;
    line += fmt::format(" {:>7.1f} GB/s", gbs);
    line +=
        c.fits_cache ? "  cache" : fmt::format(" {:>4.0f} %", 100.0 * gbs / limits.read_gbs_all);
  }
  if (c.tokens > 0) {
    line += fmt::format(" {:>8.1f} tok/s", c.tokens / timing.median());
  }
  return line;
}

MeasureOptions options_for(const Case& c) {
  if (c.heavy) {
    return {.minimum_samples = 3, .minimum_seconds = 0, .maximum_seconds = 60, .warm_up_calls = 1};
  }
  return {};
}

Json answer(Backend& backend, int threads, const Json& request, std::vector<Case>& cases,
            std::map<std::string, PreparedCase>& prepared) {
  if (request.value("info", false)) {
    return {{"name", "wick"}, {"version", WICK_VERSION}, {"threads", threads}};
  }
  const std::string name = request.at("case");
  const auto found =
      std::find_if(cases.begin(), cases.end(), [&](const Case& c) { return c.name == name; });
  if (found == cases.end()) {
    return {{"unavailable", "no such case"}};
  }
  if (!prepared.contains(name)) {
    prepared[name] = found->prepare(backend);
    prove(*found, prepared[name]);
    for (int i = 0; i < request.value("warm_up", 3); ++i) {
      prepared[name].call();
    }
  }
  const int samples = request.at("samples");
  const Timing timing = measure(prepared[name].call, {.minimum_samples = samples,
                                                      .minimum_seconds = 0,
                                                      .maximum_seconds = 1e9,
                                                      .warm_up_calls = 0});
  Json result = {{"seconds", timing.seconds}};
  if (found->heavy) {
    result["extra"] = {{"peak_rss_bytes", peak_rss_bytes()}};
  }
  return result;
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& part : {lora_cases(), rowwise_cases(), sampling_cases(), model_cases()}) {
    cases.insert(cases.end(), part.begin(), part.end());
  }
  return cases;
}

Json list_cases(const SuiteOptions& options) {
  Json list = Json::array();
  for (const Case& c : all_cases()) {
    if (selected(c, options)) {
      list.push_back(describe(c));
    }
  }
  return {{"cases", list}};
}

Json to_json(const MachineLimits& limits) {
  return {{"processor", limits.processor},
          {"instruction_set", limits.instruction_set},
          {"threads", limits.threads},
          {"fma_gflops_one", limits.fma_gflops_one},
          {"fma_gflops_all", limits.fma_gflops_all},
          {"read_gbs_one", limits.read_gbs_one},
          {"read_gbs_all", limits.read_gbs_all}};
}

Json run_suite(Backend& backend, const MachineLimits& limits, const SuiteOptions& options,
               std::ostream& out) {
  out << fmt::format("{:<46} {:>11} {:>11}   rate at the minimum, share of the machine's limit\n",
                     "case", "median us", "minimum us");
  Json results = Json::array();
  for (const Case& c : all_cases()) {
    if (!selected(c, options) || (c.heavy && !options.heavy)) {
      continue;
    }
    const PreparedCase prepared = c.prepare(backend);
    prove(c, prepared);
    const Timing timing = measure(prepared.call, options_for(c));
    out << line_of(c, timing, limits) << std::endl;
    Json entry = describe(c);
    entry["seconds"] = timing.seconds;
    results.push_back(entry);
  }
  return {{"machine", to_json(limits)}, {"cases", results}};
}

void answer_requests(Backend& backend, int threads, std::istream& in, std::ostream& out) {
  std::vector<Case> cases = all_cases();
  std::map<std::string, PreparedCase> prepared;
  for (std::string line; std::getline(in, line);) {
    out << answer(backend, threads, Json::parse(line), cases, prepared).dump() << std::endl;
  }
}

}  // namespace wick::bench
