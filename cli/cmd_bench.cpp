// `wick bench`: times completed work on this machine, against the machine's own limits.
#include <fstream>
#include <iostream>
#include <memory>

#include "bench/case.h"
#include "bench/decoding.h"
#include "bench/suite.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/output.h"
#include "cli/profile_option.h"
#include "wick/backend/profiling_backend.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/parallel.h"

namespace wick {

namespace {

struct BenchFlags {
  DeviceFlags device;
  ProfileFlags profile;
  bench::SuiteOptions suite;
  std::filesystem::path json;
  int calls = 10;
  int pairs = 96;
};

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value) {
  if (path == "-") {
    print(value.dump(1) + "\n");
  } else if (!path.empty()) {
    write_text_atomically(path, value.dump(1) + "\n");
  }
}

// The device of the flags: at highest precision, and on a CPU once more at that of whole models.
class BenchDevices {
 public:
  BenchDevices(const DeviceFlags& flags, const ProfileFlags& profile)
      : exact_(exact_of(flags).make(), profile) {
    if (exact_.inner().name() == "cpu") {
      models_ = flags.make();
      if (Profile* recorded = exact_.profile()) {
        profiled_ = std::make_unique<ProfilingBackend>(*models_, *recorded);
      }
    }
  }

  bench::Devices devices() {
    Backend* models = profiled_ ? profiled_.get() : models_.get();
    return {exact_.backend(), models != nullptr ? *models : exact_.backend()};
  }
  ProfiledDevice& exact() { return exact_; }

 private:
  static DeviceFlags exact_of(DeviceFlags flags) {
    flags.matmul_precision = "highest";
    return flags;
  }

  ProfiledDevice exact_;
  std::unique_ptr<Backend> models_;
  std::unique_ptr<Backend> profiled_;
};

bench::MachineLimits measure_limits(Backend& backend, const BenchFlags& flags) {
  if (backend.name() != "cpu") {
    return bench::measure_device(backend);
  }
  ThreadPool pool(flags.device.threads);
  return bench::measure_machine(pool);
}

std::string text_of(const bench::MachineLimits& limits) {
  if (limits.matmul_gflops > 0) {
    return fmt::format(
        "{}\n"
        "products: {:.0f} GF/s in bf16, {:.0f} in f32\n"
        "copy: {:.0f} GB/s, read and written\n"
        "a small kernel in a graph: {:.2f} us; launching a graph and awaiting it: {:.2f} us\n",
        limits.detail, limits.matmul_gflops, limits.fma_gflops_all, limits.read_gbs_all,
        limits.kernel_seconds * 1e6, limits.launch_seconds * 1e6);
  }
  return fmt::format(
      "{}, {}, {} threads\n"
      "f32 multiply-add: {:.1f} GF/s on one thread, {:.1f} on all\n"
      "memory read: {:.1f} GB/s on one thread, {:.1f} on all\n",
      limits.processor, limits.instruction_set, limits.threads, limits.fma_gflops_one,
      limits.fma_gflops_all, limits.read_gbs_one, limits.read_gbs_all);
}

void run_machine(const BenchFlags& flags) {
  const std::unique_ptr<Backend> backend = flags.device.make();
  const bench::MachineLimits limits = measure_limits(*backend, flags);
  if (flags.json != "-") {
    print(text_of(limits));
  }
  write_json(flags.json, bench::to_json(limits));
}

void run_suite(BenchFlags& flags) {
  BenchDevices devices(flags.device, flags.profile);
  const bench::MachineLimits limits = measure_limits(devices.exact().backend(), flags);
  flags.suite.profile = devices.exact().profile();
  write_json(flags.json, bench::run_suite(devices.devices(), limits, flags.suite, std::cout));
  devices.exact().report();
}

void run_scaling(BenchFlags& flags) {
  DeviceFlags single = flags.device;
  single.threads = 1;
  BenchDevices one(single, {});
  BenchDevices all(flags.device, {});
  ThreadPool pool(flags.device.threads);
  write_json(flags.json,
             bench::run_scaling(one.devices(), all.devices(), pool, flags.suite, std::cout));
}

void run_decoding(BenchFlags& flags) {
  const std::unique_ptr<Backend> backend = flags.device.make();
  ThreadPool readers(flags.device.threads);
  write_json(flags.json, bench::run_decoding(*backend, readers, bench::model_shapes().front(),
                                             flags.pairs, std::cout));
}

void run_repeat(BenchFlags& flags) {
  const std::unique_ptr<Backend> backend = flags.device.make();
  bench::repeat_cases(*backend, flags.suite, flags.calls);
  print(fmt::format("{}, {}\n", bench::instruction_set(), bench::compiler()));
}

void run_worker(const BenchFlags& flags) {
  BenchDevices devices(flags.device, {});
  bench::answer_requests(devices.devices(), flags.device.threads, std::cin, std::cout);
}

// The parts of the verb, and the flags that they share.
class BenchVerb {
 public:
  explicit BenchVerb(CLI::App& verb) : verb_(verb) {}

  CLI::App* add(const std::string& name, const std::string& help,
                const std::function<void(BenchFlags&)>& run) {
    CLI::App* part = verb_.add_subcommand(name, help);
    flags_->device.add_to(*part);
    part->callback([flags = flags_, run] { run(*flags); });
    return part;
  }
  void add_json(CLI::App* part) {
    part->add_option("--json", flags_->json, "Write all samples to this file (-: standard output)");
  }
  void add_choice(CLI::App* part) {
    part->add_option("--filter", flags_->suite.filter, "Only cases whose name contains this");
    part->add_flag("--whole-models", flags_->suite.heavy,
                   "Also whole models with random weights (gigabytes of memory, minutes)");
    part->add_option_function<std::string>(
            "--shape",
            [flags = flags_](const std::string& name) {
              flags->suite.shape = name;
              flags->suite.heavy = true;
            },
            "Only whole models of this shape")
        ->check(CLI::IsMember(bench::shape_names()));
  }
  // Of whole models; other cases are at highest.
  void add_matmul_precision(CLI::App* part) { flags_->device.add_matmul_precision_to(*part); }
  void add_suite(CLI::App* part) {
    part->add_option("--suite", flags_->suite.suite, "training, inference or all")
        ->check(CLI::IsMember({"training", "inference", "all"}));
  }
  BenchFlags& flags() { return *flags_; }

 private:
  CLI::App& verb_;
  std::shared_ptr<BenchFlags> flags_ = std::make_shared<BenchFlags>();
};

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "Time kernels and whole models on this machine");
  verb->footer(
      "Examples:\n"
      "  wick bench machine --device cuda\n"
      "  wick bench training\n"
      "  wick bench inference --filter lora_delta --json times.json\n"
      "  wick bench training --shape qwen2.5-0.5b --filter dtype=bf16 --profile\n"
      "  wick bench scaling\n"
      "  wick bench decoding\n"
      "Beside the peers, in one run: ./run compare");
  verb->require_subcommand(1);
  BenchVerb parts(*verb);
  parts.add_json(parts.add("machine", "Measure the machine's limits", run_machine));
  for (const std::string suite : {"training", "inference"}) {
    CLI::App* part =
        parts.add(suite, "Prove, time and print the cases of " + suite, [suite](BenchFlags& flags) {
          flags.suite.suite = suite;
          run_suite(flags);
        });
    parts.add_choice(part);
    parts.flags().profile.add_to(*part);
    parts.add_json(part);
    parts.add_matmul_precision(part);
  }
  CLI::App* scaling = parts.add(
      "scaling", "Time each case above 1 Mflop with one thread and with all", run_scaling);
  parts.add_choice(scaling);
  parts.add_json(scaling);
  parts.add_matmul_precision(scaling);
  CLI::App* decoding = parts.add(
      "decoding", "Decode with and without an adapter and read memory, in turns", run_decoding);
  decoding->add_option("--pairs", parts.flags().pairs, "Of tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  parts.add_json(decoding);
  parts.add_matmul_precision(decoding);
  CLI::App* repeat = parts.add(
      "repeat", "Call cases so many times, for tools that count instructions", run_repeat);
  parts.add_choice(repeat);
  repeat->add_option("--calls", parts.flags().calls, "Of each case")->capture_default_str();
  parts.add_suite(parts.add("list", "List the cases as JSON", [](BenchFlags& flags) {
    const bool best = flags.device.device == "auto";
    flags.suite.device = best ? backend_names().back() : flags.device.device;
    print(bench::list_cases(flags.suite).dump(1) + "\n");
  }));
  parts.add_matmul_precision(
      parts.add("worker", "Answer the requests of bench/compare.py on standard input", run_worker));
}

}  // namespace wick
