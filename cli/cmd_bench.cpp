// `wick bench`: times completed work on this machine, against the machine's own limits.
#include <fstream>
#include <iostream>
#include <memory>

#include "bench/suite.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/output.h"
#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/parallel.h"

namespace wick {

namespace {

struct BenchFlags {
  DeviceFlags device;
  bench::SuiteOptions suite;
  std::filesystem::path json;
};

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value) {
  if (path == "-") {
    print(value.dump(1) + "\n");
  } else if (!path.empty()) {
    write_text_atomically(path, value.dump(1) + "\n");
  }
}

bench::MachineLimits measure_limits(const BenchFlags& flags) {
  ThreadPool pool(flags.device.threads);
  return bench::measure_machine(pool);
}

void run_machine(const BenchFlags& flags) {
  const bench::MachineLimits limits = measure_limits(flags);
  if (flags.json != "-") {
    print(
        fmt::format("{}, {}, {} threads\n"
                    "f32 multiply-add: {:.1f} GF/s on one thread, {:.1f} on all\n"
                    "memory read: {:.1f} GB/s on one thread, {:.1f} on all\n",
                    limits.processor, limits.instruction_set, limits.threads, limits.fma_gflops_one,
                    limits.fma_gflops_all, limits.read_gbs_one, limits.read_gbs_all));
  }
  write_json(flags.json, bench::to_json(limits));
}

void run_suite(const BenchFlags& flags) {
  const std::unique_ptr<Backend> backend = flags.device.make();
  write_json(flags.json, bench::run_suite(*backend, measure_limits(flags), flags.suite, std::cout));
}

}  // namespace

void add_bench(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* verb = app.add_subcommand("bench", "Time kernels and whole models on this machine");
  verb->footer(
      "Examples:\n"
      "  wick bench machine\n"
      "  wick bench training\n"
      "  wick bench inference --filter lora_delta --json times.json\n"
      "  wick bench training --whole-models --filter train_step\n"
      "Beside the peers, in one run: ./run compare");
  verb->require_subcommand(1);
  const auto add = [&](const std::string& name, const std::string& help,
                       const std::function<void(BenchFlags&)>& run) {
    CLI::App* part = verb->add_subcommand(name, help);
    flags->device.add_to(*part);
    part->callback([flags, run] { run(*flags); });
    return part;
  };
  const auto add_json = [&](CLI::App* part) {
    part->add_option("--json", flags->json, "Write all samples to this file (-: standard output)");
  };
  add_json(add("machine", "Measure the machine's limits", run_machine));
  for (const std::string suite : {"training", "inference"}) {
    CLI::App* part =
        add(suite, "Prove, time and print the cases of " + suite, [suite](BenchFlags& f) {
          f.suite.suite = suite;
          run_suite(f);
        });
    part->add_option("--filter", flags->suite.filter, "Only cases whose name contains this");
    part->add_flag("--whole-models", flags->suite.heavy,
                   "Also whole models with random weights (gigabytes of memory, minutes)");
    add_json(part);
  }
  CLI::App* list = add("list", "List the cases as JSON", [](const BenchFlags& f) {
    print(bench::list_cases(f.suite).dump(1) + "\n");
  });
  list->add_option("--suite", flags->suite.suite, "training, inference or all")
      ->check(CLI::IsMember({"training", "inference", "all"}));
  add("worker", "Answer the requests of bench/compare.py on standard input",
      [](const BenchFlags& f) {
        const std::unique_ptr<Backend> backend = f.device.make();
        bench::answer_requests(*backend, f.device.threads, std::cin, std::cout);
      });
}

}  // namespace wick
