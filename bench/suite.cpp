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
  const bool of_shape =
      options.shape.empty() || c.name.find("shape=" + options.shape + ",") != std::string::npos;
  return (options.suite == "all" || options.suite == c.suite) && of_shape &&
         c.name.find(options.filter) != std::string::npos;
}

// Selected, and not left out as a whole model.
std::vector<Case> cases_to_run(const SuiteOptions& options) {
  std::vector<Case> cases;
  for (const Case& c : all_cases()) {
    if (selected(c, options) && (options.heavy || !c.heavy)) {
      cases.push_back(c);
    }
  }
  check(!cases.empty(), "bench: no case of \"{}\" has \"{}\" in its name{}", options.suite,
        options.filter, options.heavy ? "" : " (whole models need --whole-models)");
  return cases;
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

Json to_json(const Profile& profile) {
  Json kernels = Json::array();
  for (const auto& [kernel, total] : profile.totals()) {
    kernels.push_back({{"kernel", kernel},
                       {"calls", total.calls},
                       {"seconds", total.seconds},
                       {"flops", total.cost.flops},
                       {"bytes", total.cost.bytes}});
  }
  return {{"wall_seconds", profile.wall_seconds()}, {"kernels", kernels}};
}

MeasureOptions options_for(const Case& c) {
  if (c.heavy) {
    return {.minimum_samples = 5,
            .minimum_seconds = 0,
            .maximum_seconds = 10,
            .fewest_samples = 2,
            .warm_up_calls = 1};
  }
  return {};
}

// Timed calls alone are recorded by the profile, if there is one.
Timing measure_profiled(const Case& c, const PreparedCase& prepared, Profile* profile) {
  MeasureOptions options = options_for(c);
  if (profile == nullptr) {
    return measure(prepared.call, options);
  }
  for (int i = 0; i < options.warm_up_calls; ++i) {
    prepared.call();
  }
  options.warm_up_calls = 0;
  profile->resume();
  Timing timing = measure(prepared.call, options);
  profile->pause();
  return timing;
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
    measure(prepared[name].call, {.minimum_samples = request.value("warm_up", 3),
                                  .minimum_seconds = 0,
                                  .maximum_seconds = 1,
                                  .fewest_samples = std::min(request.value("warm_up", 3), 1),
                                  .warm_up_calls = 0});
  }
  const Timing timing =
      measure(prepared[name].call, {.minimum_samples = request.at("samples").get<int>(),
                                    .minimum_seconds = 0,
                                    .maximum_seconds = request.value("budget_s", 1e9),
                                    .fewest_samples = 1,
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
  for (const Case& c : cases_to_run(options)) {
    const PreparedCase prepared = c.prepare(backend);
    prove(c, prepared);
    const Timing timing = measure_profiled(c, prepared, options.profile);
    out << line_of(c, timing, limits) << std::endl;
    Json entry = describe(c);
    entry["seconds"] = timing.seconds;
    if (c.heavy) {
      entry["peak_rss_bytes"] = peak_rss_bytes();
    }
    results.push_back(entry);
  }
  Json record = {{"machine", to_json(limits)}, {"cases", results}};
  if (options.profile != nullptr) {
    record["profile"] = to_json(*options.profile);
  }
  return record;
}

Json run_scaling(Backend& one, Backend& all, const SuiteOptions& options, std::ostream& out) {
  out << fmt::format("{:<46} {:>11} {:>11} {:>8}\n", "case (medians)", "1 thread us", "all us",
                     "gain");
  Json results = Json::array();
  for (const Case& c : cases_to_run(options)) {
    if (c.flops < kScalingFlops) {
      continue;
    }
    const PreparedCase with_one = c.prepare(one);
    const PreparedCase with_all = c.prepare(all);
    prove(c, with_one);
    prove(c, with_all);
    const std::vector<std::function<void()>> calls = {with_one.call, with_all.call};
    MeasureOptions options_of_case = options_for(c);
    options_of_case.minimum_seconds = 0;  // two medians to compare, not a published time
    const std::vector<Timing> timings = measure_interleaved(calls, options_of_case);
    out << fmt::format("{:<46} {:>11.1f} {:>11.1f} {:>8.2f}", c.name, timings[0].median() * 1e6,
                       timings[1].median() * 1e6, timings[0].median() / timings[1].median())
        << std::endl;
    results.push_back({{"name", c.name},
                       {"one_seconds", timings[0].seconds},
                       {"all_seconds", timings[1].seconds}});
  }
  return {{"cases", results}};
}

void repeat_cases(Backend& backend, const SuiteOptions& options, int calls) {
  for (const Case& c : cases_to_run(options)) {
    const PreparedCase prepared = c.prepare(backend);
    for (int i = 0; i < calls; ++i) {
      prepared.call();
    }
  }
}

void answer_requests(Backend& backend, int threads, std::istream& in, std::ostream& out) {
  std::vector<Case> cases = all_cases();
  std::map<std::string, PreparedCase> prepared;
  for (std::string line; std::getline(in, line);) {
    out << answer(backend, threads, Json::parse(line), cases, prepared).dump() << std::endl;
  }
}

}  // namespace wick::bench
