// The suites: proof, timing, table and JSON.
#include "bench/suite.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <istream>
#include <ostream>

#include "bench/case.h"
#include "bench/measure.h"
#include "wick/base/error.h"
#include "wick/base/parallel.h"

namespace wick::bench {

using Json = nlohmann::ordered_json;

namespace {

bool selected(const Case& c, const SuiteOptions& options) {
  const bool of_shape =
      options.shape.empty() || c.name.find("shape=" + options.shape + ",") != std::string::npos;
  return (options.suite == "all" || options.suite == c.suite) && of_shape &&
         c.name.find(options.filter) != std::string::npos;
}

std::vector<Case> cases_of(std::string_view device) {
  return device == "cpu" ? all_cases() : gpu_cases();
}

// Those of the back end that are selected, and not left out as whole models.
std::vector<Case> cases_to_run(const Backend& backend, const SuiteOptions& options) {
  std::vector<Case> cases;
  for (const Case& c : cases_of(backend.name())) {
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
    check(error <= c.error_limit,
          "bench: {}: the result is off by {:.2e} of its largest value, at most {:.0e} is allowed",
          c.name, error, c.error_limit);
  }
}

int64_t peak_rss_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// The limit of a CPU is that of f32 arithmetic, of which products of bf16 numbers are no share.
bool has_limit(const PreparedCase& prepared, const MachineLimits& limits) {
  return limits.matmul_gflops > 0 || prepared.matmul_precision != MatmulPrecision::medium;
}

std::string line_of(const Case& c, const PreparedCase& prepared, const Timing& timing,
                    const MachineLimits& limits) {
  const double best = timing.minimum();
  std::string line =
      fmt::format("{:<46} {:>11.1f} {:>11.1f}", c.name, timing.median() * 1e6, best * 1e6);
  if (c.flops > 0) {
    const double gflops = c.flops / best * 1e-9;
    line += fmt::format(" {:>8.1f} GF/s", gflops);
    line += has_limit(prepared, limits)
                ? fmt::format(" {:>4.0f} %", 100.0 * gflops / limits.flop_limit())
                : std::string(7, ' ');
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
  if (prepared.matmul_precision) {
    line += fmt::format("  {}", name_of(*prepared.matmul_precision));
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

// On a GPU two more calls to warm up: a Recorder replays from the third one on.
MeasureOptions options_for(const Backend& backend, const Case& c) {
  const int more_warm_up = backend.name() == "cpu" ? 0 : 2;
  if (c.heavy) {
    return {.minimum_samples = 5,
            .minimum_seconds = 0,
            .maximum_seconds = 10,
            .fewest_samples = 2,
            .warm_up_calls = 1 + more_warm_up};
  }
  return {.warm_up_calls = 2 + more_warm_up};
}

// A core of a virtual machine that had nothing to do may take a millisecond to come back.
constexpr double kWarmUpSeconds = 0.005;

// Of one piece of the work.
Timing measure_one(const PreparedCase& prepared, const MeasureOptions& options) {
  Timing timing = measure(prepared.call, options);
  for (double& seconds : timing.seconds) {
    seconds /= prepared.repeats;
  }
  return timing;
}

// Gives a case the memory of those before it, if it is to have the machine for itself.
void make_room(Backend& backend, const Case& c, std::map<std::string, PreparedCase>& prepared) {
  if (c.heavy) {
    prepared.clear();
    backend.reset_peak_memory();
  }
}

// Figures beside the times, of whole models alone.
Json extras_of(const Backend& backend, const Case& c, const PreparedCase& prepared) {
  Json extras = Json::object();
  if (c.heavy) {
    extras["peak_rss_bytes"] = peak_rss_bytes();
    if (backend.name() != "cpu") {
      extras["peak_device_bytes"] = backend.memory().peak_bytes;
    }
  }
  if (prepared.matmul_precision) {
    extras["matmul_precision"] = name_of(*prepared.matmul_precision);
  }
  if (prepared.extra) {
    for (const auto& [name, value] : prepared.extra()) {
      extras[name] = value;
    }
  }
  return extras;
}

// Timed calls alone are recorded by the profile, if there is one.
Timing measure_profiled(const PreparedCase& prepared, MeasureOptions options, Profile* profile) {
  if (profile == nullptr) {
    return measure_one(prepared, options);
  }
  for (int i = 0; i < options.warm_up_calls; ++i) {
    prepared.call();
  }
  options.warm_up_calls = 0;
  profile->resume();
  Timing timing = measure_one(prepared, options);
  profile->pause();
  return timing;
}

Json answer(const Devices& devices, int threads, const Json& request, std::vector<Case>& cases,
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
  Backend& backend = devices.of(*found);
  if (!prepared.contains(name)) {
    make_room(backend, *found, prepared);
    PreparedCase fresh = found->prepare(backend);
    prove(*found, fresh);
    measure(fresh.call, {.minimum_samples = request.value("warm_up", 3),
                         .minimum_seconds = 0,
                         .maximum_seconds = request.value("warm_up_s", 1.0),
                         .fewest_samples = std::min(request.value("warm_up", 3), 1),
                         .warm_up_calls = 0});
    prepared[name] = std::move(fresh);
  }
  const Timing timing =
      measure_one(prepared[name], {.minimum_samples = request.at("samples").get<int>(),
                                   .minimum_seconds = 0,
                                   .maximum_seconds = request.value("budget_s", 1e9),
                                   .fewest_samples = 1,
                                   .warm_up_calls = 0,
                                   .warm_up_seconds = request.value("settle_s", 0.0)});
  Json result = {{"seconds", timing.seconds}};
  const Json extras = extras_of(backend, *found, prepared[name]);
  if (!extras.empty()) {
    result["extra"] = extras;
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
  for (const Case& c : cases_of(options.device)) {
    if (selected(c, options)) {
      list.push_back(describe(c));
    }
  }
  return {{"cases", list}};
}

Json to_json(const MachineLimits& limits) {
  if (limits.matmul_gflops > 0) {
    return {{"processor", limits.processor},
            {"detail", limits.detail},
            {"matmul_gflops_all", limits.matmul_gflops},
            {"fma_gflops_all", limits.fma_gflops_all},
            {"read_gbs_all", limits.read_gbs_all},
            {"launch_seconds", limits.launch_seconds},
            {"kernel_seconds", limits.kernel_seconds}};
  }
  return {{"processor", limits.processor},
          {"instruction_set", limits.instruction_set},
          {"threads", limits.threads},
          {"fma_gflops_one", limits.fma_gflops_one},
          {"fma_gflops_all", limits.fma_gflops_all},
          {"read_gbs_one", limits.read_gbs_one},
          {"read_gbs_all", limits.read_gbs_all}};
}

Json run_suite(const Devices& devices, const MachineLimits& limits, const SuiteOptions& options,
               std::ostream& out) {
  const std::vector<Case> cases = cases_to_run(devices.exact, options);
  out << fmt::format("{:<46} {:>11} {:>11}   rate at the minimum, share of the machine's limit\n",
                     "case", "median us", "minimum us");
  Json results = Json::array();
  for (const Case& c : cases) {
    Backend& backend = devices.of(c);
    backend.reset_peak_memory();
    const PreparedCase prepared = c.prepare(backend);
    prove(c, prepared);
    const Timing timing = measure_profiled(prepared, options_for(backend, c), options.profile);
    out << line_of(c, prepared, timing, limits) << std::endl;
    Json entry = describe(c);
    entry["seconds"] = timing.seconds;
    entry.update(extras_of(backend, c, prepared));
    results.push_back(entry);
  }
  Json record = {{"machine", to_json(limits)}, {"cases", results}};
  if (options.profile != nullptr) {
    record["profile"] = to_json(*options.profile);
  }
  return record;
}

Json run_scaling(const Devices& one, const Devices& all, ThreadPool& pool,
                 const SuiteOptions& options, std::ostream& out) {
  struct Pair {
    const Case* of;
    PreparedCase with_one, with_all;
    std::array<Timing, 4> times;  // one, all; the same of bare work

    double gain(size_t first) const { return times[first].median() / times[first + 1].median(); }
  };
  ThreadPool single(1);
  const BareWork bare(pool.threads());
  const std::vector<Case> cases = cases_to_run(all.exact, options);
  const auto measure_pair = [&](Pair& pair) {
    const Case& c = *pair.of;
    MeasureOptions options_of_case = options_for(all.exact, c);
    options_of_case.minimum_seconds = 0;  // two medians to compare, not a published time
    if (!c.heavy) {
      options_of_case.minimum_samples = 20;
      options_of_case.samples_of_turn = 20;
      options_of_case.seconds_of_turn = 0.002;
      options_of_case.warm_up_seconds = kWarmUpSeconds;
    }
    std::vector<std::function<void()>> calls = {pair.with_one.call, pair.with_all.call};
    if (!c.heavy) {
      calls.emplace_back([&] { bare.run(single); });
      calls.emplace_back([&] { bare.run(pool); });
    }
    const std::vector<Timing> timings = measure_interleaved(calls, options_of_case);
    for (size_t i = 0; i < timings.size(); ++i) {
      const std::vector<double>& more = timings[i].seconds;
      pair.times[i].seconds.insert(pair.times[i].seconds.end(), more.begin(), more.end());
    }
  };
  const auto prepare = [&](const Case& c) {
    Pair pair{&c, c.prepare(one.of(c)), c.prepare(all.of(c)), {}};
    prove(c, pair.with_one);
    prove(c, pair.with_all);
    return pair;
  };
  Json results = Json::array();
  const auto tell = [&](const Pair& pair) {
    const auto& [with_one, with_all, bare_one, bare_all] = pair.times;
    const bool has_bare = !bare_one.seconds.empty();
    out << fmt::format("{:<46} {:>11.1f} {:>11.1f} {:>8.2f} {:>16.2f} {:>18}", pair.of->name,
                       with_one.median() * 1e6, with_all.median() * 1e6, pair.gain(0),
                       with_one.minimum() / with_all.minimum(),
                       has_bare ? fmt::format("{:.2f}", pair.gain(2)) : "-")
        << std::endl;
    Json& entry = results.emplace_back(Json{{"name", pair.of->name},
                                            {"one_seconds", with_one.seconds},
                                            {"all_seconds", with_all.seconds}});
    if (has_bare) {
      entry["bare_one_seconds"] = bare_one.seconds;
      entry["bare_all_seconds"] = bare_all.seconds;
    }
  };
  out << fmt::format("{:<46} {:>11} {:>11} {:>8} {:>16} {:>18}\n", "case (medians)", "1 thread us",
                     "all us", "gain", "gain of minima", "gain of bare work");
  std::vector<Pair> light;
  for (const Case& c : cases) {
    if (!c.heavy && c.flops >= kScalingFlops) {
      light.push_back(prepare(c));
    }
  }
  // All cases many times, spread over seconds: a virtual machine's cores may be two threads of one
  // core of the host for a while.
  constexpr int kPasses = 9;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::ranges::for_each(light, measure_pair);
  }
  std::ranges::for_each(light, tell);
  light.clear();
  for (const Case& c : cases) {
    if (c.heavy && c.flops >= kScalingFlops) {
      Pair pair = prepare(c);
      measure_pair(pair);
      tell(pair);
    }
  }
  return {{"cases", results}};
}

void repeat_cases(Backend& backend, const SuiteOptions& options, int calls) {
  for (const Case& c : cases_to_run(backend, options)) {
    const PreparedCase prepared = c.prepare(backend);
    for (int i = 0; i < calls; ++i) {
      prepared.call();
    }
  }
}

void answer_requests(const Devices& devices, int threads, std::istream& in, std::ostream& out) {
  std::vector<Case> cases = all_cases();
  const std::vector<Case> of_gpus = gpu_cases();
  cases.insert(cases.end(), of_gpus.begin(), of_gpus.end());
  std::map<std::string, PreparedCase> prepared;
  for (std::string line; std::getline(in, line);) {
    out << answer(devices, threads, Json::parse(line), cases, prepared).dump() << std::endl;
  }
}

}  // namespace wick::bench
