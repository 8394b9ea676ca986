// PEFT folders in and out.
#include "wick/lora/peft_io.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <utility>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/base/hash.h"
#include "wick/io/safetensors.h"
#include "wick/lora/name_list.h"

namespace wick {

namespace {

constexpr const char* kConfigName = "adapter_config.json";
constexpr const char* kWeightsName = "adapter_model.safetensors";
constexpr const char* kPickleName = "adapter_model.bin";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kSuffixA = ".lora_A.weight";
constexpr std::string_view kSuffixB = ".lora_B.weight";

// What the header of the weights repeats of the config.
SafetensorsMetadata config_metadata(const AdapterConfig& config) {
  SafetensorsMetadata metadata = {
      {"rank", std::to_string(config.rank)},
      {"alpha", fmt::format("{}", config.alpha)},
      {"scaling", config.use_rslora ? "alpha/sqrt(rank)" : "alpha/rank"},
  };
  std::string pattern;
  for (const auto& [module, alpha] : config.alpha_pattern) {
    pattern += fmt::format("{}={};", module, alpha);
  }
  metadata["alpha_pattern"] = pattern;
  return metadata;
}

void check_same_save(const AdapterConfig& config, const SafetensorsFile& file) {
  for (const auto& [key, in_config] : config_metadata(config)) {
    const auto in_weights = file.metadata().find(key);
    check(in_weights == file.metadata().end() || in_weights->second == in_config,
          "{}: was saved with {} \"{}\", but {} beside it says \"{}\"; the two files are not of "
          "one save: take both from one place, or an earlier checkpoint",
          file.path().string(), key, in_weights == file.metadata().end() ? "" : in_weights->second,
          kConfigName, in_config);
  }
}

// The halves of a pair, as tensor names.
struct Halves {
  std::string a;
  std::string b;
};

std::map<std::string, Halves> pair_tensors(const SafetensorsFile& file) {
  std::map<std::string, Halves> pairs;
  NameList unexpected;
  for (const auto& [name, entry] : file.entries()) {
    std::string_view module = name;
    const bool is_a = module.ends_with(kSuffixA);
    if (!module.starts_with(kPrefix) || (!is_a && !module.ends_with(kSuffixB))) {
      unexpected.add(name);
      continue;
    }
    module.remove_prefix(kPrefix.size());
    module.remove_suffix(is_a ? kSuffixA.size() : kSuffixB.size());
    Halves& halves = pairs[std::string(module)];
    (is_a ? halves.a : halves.b) = name;
  }
  check(unexpected.empty(),
        "{}: tensors that are no LoRA factors of linear layers: {}; wick reads "
        "\"base_model.model.<module>.lora_A.weight\" and \".lora_B.weight\" only: merge the "
        "adapter into its base with PEFT instead",
        file.path().string(), unexpected.text());
  NameList missing;
  for (const auto& [module, halves] : pairs) {
    if (halves.a.empty() || halves.b.empty()) {
      missing.add(fmt::format("{}{}{}", kPrefix, module, halves.a.empty() ? kSuffixA : kSuffixB));
    }
  }
  check(missing.empty(),
        "{}: missing tensors, whose other halves are there: {}; copy the adapter "
        "again",
        file.path().string(), missing.text());
  check(!pairs.empty(), "{}: holds no tensors, so no adapter", file.path().string());
  return pairs;
}

// The other extent of a factor whose `axis` must be the rank; notes what is wrong otherwise.
std::optional<int64_t> checked_extent(const SafetensorsFile& file, const std::string& name,
                                      int axis, int64_t rank, NameList& wrong) {
  const Shape shape = file.shape(name);
  if (shape.rank() != 2 || shape[axis] != rank || shape[1 - axis] == 0) {
    wrong.add(fmt::format("{} {} (its rank should be {})", name, shape.to_string(), rank));
    return std::nullopt;
  }
  return shape[1 - axis];
}

std::vector<AdapterEntry> read_entries(const SafetensorsFile& file, const AdapterRules& rules) {
  const std::map<std::string, Halves> pairs = pair_tensors(file);
  NameList untargeted;
  NameList wrong;
  std::vector<AdapterEntry> entries;
  for (const auto& [module, halves] : pairs) {
    if (!rules.targets(module)) {
      untargeted.add(module);
      continue;
    }
    const int64_t rank = rules.rank(module);
    const std::optional<int64_t> in = checked_extent(file, halves.a, 0, rank, wrong);
    const std::optional<int64_t> out = checked_extent(file, halves.b, 1, rank, wrong);
    if (in && out) {
      entries.push_back({module, rank, *in, *out, {}, {}});
    }
  }
  check(untargeted.empty(),
        "{}: has factors of modules that target_modules of {} does not name: {}; the two files "
        "are not of one adapter",
        file.path().string(), kConfigName, untargeted.text());
  check(wrong.empty(),
        "{}: tensors whose shape does not fit {}: {}; the two files are not of one "
        "adapter",
        file.path().string(), kConfigName, wrong.text());
  for (AdapterEntry& entry : entries) {
    const Halves& halves = pairs.at(entry.module);
    entry.a = file.floats(halves.a);
    entry.b = file.floats(halves.b);
  }
  return entries;
}

}  // namespace

Adapter read_peft(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  check(fs::is_directory(folder), "{}: no such folder; an adapter is a folder with {} and {}",
        folder.string(), kConfigName, kWeightsName);
  const bool has_weights = fs::exists(folder / kWeightsName);
  check(fs::exists(folder / kConfigName), "{}: holds no adapter: {} is missing", folder.string(),
        kConfigName);
  check(has_weights || !fs::exists(folder / kPickleName),
        "{}: only {} is there, a pickle file, which can run code and is not read; save the adapter "
        "again with PEFT (save_pretrained writes {} by default)",
        folder.string(), kPickleName, kWeightsName);
  check(has_weights, "{}: holds no adapter: {} is missing", folder.string(), kWeightsName);

  Adapter adapter;
  adapter.config = read_adapter_config(folder / kConfigName);
  const SafetensorsFile file(folder / kWeightsName);
  check_same_save(adapter.config, file);
  adapter.entries =
      read_entries(file, AdapterRules(adapter.config, (folder / kConfigName).string()));
  const auto hash = file.metadata().find("base_config_hash");
  if (hash != file.metadata().end()) {
    adapter.base_hash = hash->second;
  }
  return adapter;
}

void write_peft(const std::filesystem::path& folder, const Adapter& adapter) {
  adapter.config.check_values("adapter");
  std::vector<SafetensorsItem> items;
  for (const AdapterEntry& entry : adapter.entries) {
    const std::string name = std::string(kPrefix) + entry.module;
    items.push_back(
        safetensors_item(name + std::string(kSuffixA), {entry.rank, entry.in}, entry.a));
    items.push_back(
        safetensors_item(name + std::string(kSuffixB), {entry.out, entry.rank}, entry.b));
  }
  SafetensorsMetadata metadata = config_metadata(adapter.config);
  metadata["format"] = "pt";  // PEFT wants it
  metadata["wick_version"] = WICK_VERSION;
  metadata["base_model"] = adapter.config.base_model_name_or_path;
  metadata["base_config_hash"] = adapter.base_hash;

  std::filesystem::create_directories(folder);
  AtomicFile weights(folder / kWeightsName);
  write_safetensors(weights, std::move(items), metadata);
  AtomicFile config(folder / kConfigName);
  config.write(format_adapter_config(adapter.config));
  weights.finish();
  config.finish();
  weights.commit();
  config.commit();
}

bool holds_adapter(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / kConfigName) ||
         std::filesystem::exists(folder / kWeightsName);
}

std::string base_config_hash(const std::filesystem::path& model_folder) {
  return fmt::format("{:016x}", fnv1a(read_text(model_folder / "config.json")));
}

std::string base_warning(const Adapter& adapter, const std::filesystem::path& model_folder) {
  if (adapter.base_hash.empty() || adapter.base_hash == base_config_hash(model_folder)) {
    return {};
  }
  return fmt::format(
      "the adapter was trained on \"{}\", whose config.json differs from that in {}; results may "
      "be wrong",
      adapter.config.base_model_name_or_path, model_folder.string());
}

}  // namespace wick
