// What a LoRA adapter is: the content of PEFT's `adapter_config.json`, checked.
//
// A layer's output changes by scaling * dropout(x) A^T B^T, where scaling is alpha / rank, or
// alpha / sqrt(rank) with rsLoRA (Kalajdzievski, 2023). Rank and alpha may differ by module.
//
// Unknown keys are ignored when reading, but a key that changes the forward pass in a way that wick
// does not implement is an Error: silence there would give wrong answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace wick {

// Which modules of a model: by name, by regular expression, or all linear layers but the head.
struct ModuleSelection {
  enum class Kind : uint8_t { names, expression, all_linear };
  Kind kind = Kind::names;
  std::vector<std::string> names;  // a module path equals the name or ends with "." + name
  std::string expression;          // matches the whole module path

  static ModuleSelection all_linear() { return {Kind::all_linear, {}, {}}; }
  // "all-linear", or names separated by commas, as a person writes them. Throws Error on an empty
  // name.
  static ModuleSelection parse(std::string_view text);
  bool empty() const { return kind == Kind::names && names.empty(); }

  friend bool operator==(const ModuleSelection&, const ModuleSelection&) = default;
};

struct AdapterConfig {
  int64_t rank = 8;
  double alpha = 8.0;
  double dropout = 0.0;  // in [0, 1)
  bool use_rslora = false;
  ModuleSelection target_modules;
  ModuleSelection exclude_modules;           // never all_linear
  std::vector<int64_t> layers_to_transform;  // empty: all
  std::vector<std::string> layers_pattern;   // names of the list of layers; empty: any
  // In order: the first key that matches the module path, or the end of it after a dot, wins. Keys
  // are regular expressions.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::string base_model_name_or_path;
  std::string task_type = "CAUSAL_LM";

  // Throws Error, starting with `where`, on a rank, alpha or dropout out of range, or settings that
  // contradict each other.
  void check_values(std::string_view where) const;
  friend bool operator==(const AdapterConfig&, const AdapterConfig&) = default;
};

// An AdapterConfig with its patterns compiled, to ask about many modules.
class AdapterRules {
 public:
  // Checks the values too; `where` names the config in errors. `config` must outlive this.
  AdapterRules(const AdapterConfig& config, std::string_view where);
  ~AdapterRules();
  AdapterRules(const AdapterRules&) = delete;
  AdapterRules& operator=(const AdapterRules&) = delete;

  bool targets(std::string_view module) const;
  int64_t rank(std::string_view module) const;
  double alpha(std::string_view module) const;
  float scaling(std::string_view module) const;

 private:
  struct Patterns;
  const AdapterConfig& config_;
  std::unique_ptr<Patterns> patterns_;
};

AdapterConfig read_adapter_config(const std::filesystem::path& adapter_config_json);
// The same from text; `name` is for messages.
AdapterConfig parse_adapter_config(std::string_view json, std::string_view name);
// As PEFT writes it: all keys that PEFT knows, sorted, indented by two.
std::string format_adapter_config(const AdapterConfig& config);

}  // namespace wick
