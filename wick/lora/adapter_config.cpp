// The values of an adapter's config, and which module gets what.
#include "wick/lora/adapter_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>

#include "wick/base/error.h"
#include "wick/lora/module_pattern.h"

namespace wick {

namespace {

constexpr int64_t kMaxRank = 65536;

bool names_module(std::string_view name, std::string_view module) {
  return module == name || (module.size() > name.size() && module.ends_with(name) &&
                            module[module.size() - name.size() - 1] == '.');
}

bool is_head(std::string_view module) {
  return names_module("lm_head", module);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(end + 1);
  }
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') {
    text.remove_prefix(1);
  }
  while (!text.empty() && text.back() == ' ') {
    text.remove_suffix(1);
  }
  return text;
}

std::optional<int64_t> number(std::string_view digits) {
  if (digits.empty() || digits.size() > 9 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    return std::nullopt;
  }
  int64_t value = 0;
  for (const char c : digits) {
    value = value * 10 + (c - '0');
  }
  return value;
}

// The index in a list of layers that a module path goes through: the first number behind one of
// `lists`, or, if there are none, the first that is not at the start of the path or just behind it.
std::optional<int64_t> layer_index(std::string_view module, const std::vector<std::string>& lists) {
  const std::vector<std::string_view> parts = split(module, '.');
  for (size_t i = 1; i + 1 < parts.size(); ++i) {
    const std::optional<int64_t> index = number(parts[i]);
    const std::string_view before(module.data(), parts[i].data() - module.data() - 1);
    const bool in_list =
        lists.empty() ? i >= 2
                      : std::any_of(lists.begin(), lists.end(), [&](const std::string& list) {
                          return names_module(list, before);
                        });
    if (index && in_list) {
      return index;
    }
  }
  return std::nullopt;
}

std::vector<ModulePattern> compile_keys(const auto& pairs, const std::string& where) {
  std::vector<ModulePattern> patterns;
  patterns.reserve(pairs.size());
  for (const auto& [key, value] : pairs) {
    patterns.emplace_back("(?:.*\\.)?(?:" + key + ")", where);
  }
  return patterns;
}

}  // namespace

ModuleSelection ModuleSelection::parse(std::string_view text) {
  std::string lower(trim(text));
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (lower == "all-linear") {
    return all_linear();
  }
  ModuleSelection selection;
  for (const std::string_view part : split(text, ',')) {
    check(!trim(part).empty(),
          "target modules \"{}\": a name is empty; write all-linear, or names separated by commas",
          text);
    selection.names.emplace_back(trim(part));
  }
  return selection;
}

void AdapterConfig::check_values(std::string_view where) const {
  const auto check_rank = [&](std::string_view key, int64_t value) {
    check(value >= 1 && value <= kMaxRank, "{}: {} is {}; a rank is from 1 to {}", where, key,
          value, kMaxRank);
  };
  const auto check_alpha = [&](std::string_view key, double value) {
    check(std::isfinite(value) && std::abs(value) <= 1e9,
          "{}: {} is {}; alpha is a finite number, usually the rank or twice the rank", where, key,
          value);
  };
  check_rank("rank (r)", rank);
  check_alpha("alpha (lora_alpha)", alpha);
  for (const auto& [key, value] : rank_pattern) {
    check_rank("rank_pattern of " + key, value);
  }
  for (const auto& [key, value] : alpha_pattern) {
    check_alpha("alpha_pattern of " + key, value);
  }
  check(dropout >= 0.0 && dropout < 1.0,
        "{}: dropout (lora_dropout) is {}; it is at least 0 and below 1", where, dropout);
  check(!target_modules.empty(),
        "{}: target_modules names nothing; write \"all-linear\" or a list of module names", where);
  check(layers_to_transform.empty() || target_modules.kind != ModuleSelection::Kind::expression,
        "{}: layers_to_transform needs a list in target_modules, not a regular expression", where);
  check(layers_pattern.empty() || !layers_to_transform.empty(),
        "{}: layers_pattern without layers_to_transform says nothing; remove it", where);
}

struct AdapterRules::Patterns {
  std::optional<ModulePattern> target;
  std::optional<ModulePattern> exclude;
  std::vector<ModulePattern> ranks;
  std::vector<ModulePattern> alphas;
};

AdapterRules::AdapterRules(const AdapterConfig& config, std::string_view where)
    : config_(config), patterns_(std::make_unique<Patterns>()) {
  config.check_values(where);
  const std::string name(where);
  if (config.target_modules.kind == ModuleSelection::Kind::expression) {
    patterns_->target.emplace(config.target_modules.expression, name + ": target_modules");
  }
  if (config.exclude_modules.kind == ModuleSelection::Kind::expression) {
    patterns_->exclude.emplace(config.exclude_modules.expression, name + ": exclude_modules");
  }
  patterns_->ranks = compile_keys(config.rank_pattern, name + ": rank_pattern");
  patterns_->alphas = compile_keys(config.alpha_pattern, name + ": alpha_pattern");
}

AdapterRules::~AdapterRules() = default;

bool AdapterRules::targets(std::string_view module) const {
  const auto among = [&](const std::vector<std::string>& names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return names_module(name, module); });
  };
  if (patterns_->exclude ? patterns_->exclude->matches(module)
                         : among(config_.exclude_modules.names)) {
    return false;
  }
  if (patterns_->target) {
    return patterns_->target->matches(module);
  }
  const std::vector<std::string>& names = config_.target_modules.names;
  if (config_.target_modules.kind == ModuleSelection::Kind::all_linear ? is_head(module)
                                                                       : !among(names)) {
    return false;
  }
  // A module named in full is meant whatever the layers.
  if (config_.layers_to_transform.empty() ||
      std::find(names.begin(), names.end(), module) != names.end()) {
    return true;
  }
  const std::optional<int64_t> layer = layer_index(module, config_.layers_pattern);
  return layer && std::find(config_.layers_to_transform.begin(), config_.layers_to_transform.end(),
                            *layer) != config_.layers_to_transform.end();
}

int64_t AdapterRules::rank(std::string_view module) const {
  for (size_t i = 0; i < patterns_->ranks.size(); ++i) {
    if (patterns_->ranks[i].matches(module)) {
      return config_.rank_pattern[i].second;
    }
  }
  return config_.rank;
}

double AdapterRules::alpha(std::string_view module) const {
  for (size_t i = 0; i < patterns_->alphas.size(); ++i) {
    if (patterns_->alphas[i].matches(module)) {
      return config_.alpha_pattern[i].second;
    }
  }
  return config_.alpha;
}

float AdapterRules::scaling(std::string_view module) const {
  const auto rank_of = static_cast<double>(rank(module));
  return static_cast<float>(alpha(module) / (config_.use_rslora ? std::sqrt(rank_of) : rank_of));
}

}  // namespace wick
