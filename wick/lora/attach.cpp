// Slots filled with views of one arena.
#include "wick/lora/attach.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "wick/base/error.h"
#include "wick/base/hash.h"
#include "wick/base/log.h"
#include "wick/base/random.h"
#include "wick/lora/name_list.h"

namespace wick {

namespace {

constexpr int64_t kAlignment = 16;

int64_t aligned(int64_t elements) {
  return (elements + kAlignment - 1) / kAlignment * kAlignment;
}

uint64_t stream_of(std::string_view purpose, std::string_view module) {
  return fnv1a(std::string(purpose) + "." + std::string(module));
}

std::string leaf(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

// One layer that is to get an adapter.
struct Target {
  LinearLayer* layer;
  int64_t rank;
  float scaling;
};

using FillFactors =
    std::function<void(const Target& target, std::span<float> a, std::span<float> b)>;

// Allocates the arenas, has every A and B filled on the host, and points the slots there.
AttachedAdapter build(Backend& backend, const std::vector<Target>& targets,
                      const AdapterConfig& config, Trainable trainable,
                      const FillFactors& fill_factors) {
  AttachedAdapter attached;
  attached.config = config;
  int64_t size = 0;
  for (const Target& target : targets) {
    const std::string& name = target.layer->name;
    check(!target.layer->lora, "{}: has an adapter already; detach that first", name);
    const Shape a{target.rank, target.layer->in_features()};
    const Shape b{target.layer->out_features(), target.rank};
    attached.segments.push_back({name + ".lora_A", size, a});
    attached.segments.push_back({name + ".lora_B", size + aligned(a.elements()), b});
    size = attached.segments.back().begin + aligned(b.elements());
  }
  std::vector<float> host(static_cast<size_t>(size), 0.0F);
  for (size_t i = 0; i < targets.size(); ++i) {
    const auto& a = attached.segments[2 * i];
    const auto& b = attached.segments[2 * i + 1];
    fill_factors(targets[i],
                 std::span(host).subspan(static_cast<size_t>(a.begin),
                                         static_cast<size_t>(a.shape.elements())),
                 std::span(host).subspan(static_cast<size_t>(b.begin),
                                         static_cast<size_t>(b.shape.elements())));
  }
  attached.values = backend.allocate({size}, DType::f32);
  backend.upload(std::as_bytes(std::span(host)), attached.values);
  if (trainable == Trainable::yes) {
    attached.grads = backend.allocate({size}, DType::f32);
    backend.fill(0.0F, attached.grads);
  }
  const auto parameter = [&](const AttachedAdapter::Segment& segment) {
    return Parameter{segment.name, attached.values.part(segment.begin, segment.shape),
                     attached.grads ? attached.grads.part(segment.begin, segment.shape) : Tensor()};
  };
  for (size_t i = 0; i < targets.size(); ++i) {
    LinearLayer& layer = *targets[i].layer;
    layer.lora = LoraSlot{.a = parameter(attached.segments[2 * i]),
                          .b = parameter(attached.segments[2 * i + 1]),
                          .scaling = targets[i].scaling,
                          .dropout = static_cast<float>(config.dropout),
                          .stream = stream_of("lora_dropout", layer.name)};
    attached.layers.push_back(&layer);
  }
  return attached;
}

std::string names_available(std::span<LinearLayer* const> layers) {
  std::set<std::string> leaves;
  for (const LinearLayer* layer : layers) {
    leaves.insert(leaf(layer->name));
  }
  std::string text;
  for (const std::string& name : leaves) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

std::vector<Target> select(std::span<LinearLayer* const> layers, const AdapterRules& rules) {
  std::vector<Target> targets;
  for (LinearLayer* layer : layers) {
    if (rules.targets(layer->name)) {
      targets.push_back({layer, rules.rank(layer->name), rules.scaling(layer->name)});
    }
  }
  return targets;
}

// Each name must match something: a misspelt one would train less than was asked for.
void check_names_match(std::span<LinearLayer* const> layers, const ModuleSelection& selection) {
  NameList unmatched;
  for (const std::string& name : selection.names) {
    AdapterConfig alone;
    alone.target_modules.names = {name};
    const AdapterRules rules(alone, "target modules");
    if (std::none_of(layers.begin(), layers.end(),
                     [&](const LinearLayer* layer) { return rules.targets(layer->name); })) {
      unmatched.add(name);
    }
  }
  check(unmatched.empty(),
        "target modules: no linear layer is named {}; there are {} (or write all-linear)",
        unmatched.text(), names_available(layers));
}

// Targets as a list that selects the same layers in any reader: the last parts of the names if
// those select nothing else, else full names.
std::vector<std::string> names_of(std::span<LinearLayer* const> layers,
                                  const std::vector<Target>& targets) {
  std::set<std::string> leaves;
  for (const Target& target : targets) {
    leaves.insert(leaf(target.layer->name));
  }
  const auto with_leaf = std::count_if(layers.begin(), layers.end(), [&](const LinearLayer* layer) {
    return leaves.contains(leaf(layer->name));
  });
  if (static_cast<size_t>(with_leaf) == targets.size()) {
    return {leaves.begin(), leaves.end()};
  }
  std::vector<std::string> names;
  names.reserve(targets.size());
  for (const Target& target : targets) {
    names.push_back(target.layer->name);
  }
  return names;
}

// The entry of each layer that the adapter adapts, or an error that says how the two differ.
std::map<const LinearLayer*, const AdapterEntry*> fit(std::span<LinearLayer* const> layers,
                                                      const Adapter& adapter,
                                                      const AdapterRules& rules) {
  std::map<std::string_view, const LinearLayer*> by_name;
  for (const LinearLayer* layer : layers) {
    by_name.emplace(layer->name, layer);
  }
  std::map<const LinearLayer*, const AdapterEntry*> entries;
  NameList absent;
  NameList sizes;
  for (const AdapterEntry& entry : adapter.entries) {
    const auto found = by_name.find(entry.module);
    if (found == by_name.end()) {
      absent.add(entry.module);
      continue;
    }
    const LinearLayer& layer = *found->second;
    const auto elements = [&](int64_t other) { return static_cast<size_t>(entry.rank * other); };
    check(entry.rank == rules.rank(entry.module) && entry.a.size() == elements(entry.in) &&
              entry.b.size() == elements(entry.out),
          "adapter: the factors of {} do not have the rank that its config states", entry.module);
    if (layer.in_features() != entry.in || layer.out_features() != entry.out) {
      sizes.add(fmt::format("{} (adapter {} to {}, model {} to {})", entry.module, entry.in,
                            entry.out, layer.in_features(), layer.out_features()));
    }
    entries.emplace(&layer, &entry);
  }
  const std::string& base = adapter.config.base_model_name_or_path;
  const std::string advice =
      base.empty() ? "use the model that the adapter was trained on"
                   : fmt::format("use the model that the adapter was trained on, \"{}\"", base);
  check(absent.empty(), "adapter: the model has no linear layers named {}; {}", absent.text(),
        advice);
  check(sizes.empty(), "adapter: layers of other sizes than the model's: {}; {}", sizes.text(),
        advice);
  NameList missing;
  for (const LinearLayer* layer : layers) {
    if (rules.targets(layer->name) && !entries.contains(layer)) {
      missing.add(layer->name);
    }
  }
  check(missing.empty(),
        "adapter: its config targets layers that it has no factors for: {}; its file is "
        "incomplete, or {}",
        missing.text(), advice);
  return entries;
}

}  // namespace

int64_t AttachedAdapter::parameters() const {
  int64_t count = 0;
  for (const Segment& segment : segments) {
    count += segment.shape.elements();
  }
  return count;
}

Adapter AttachedAdapter::to_adapter(Backend& backend) const {
  check(values.dtype() == DType::f32,
        "adapter: its factors were rounded to {} for inference; attach it anew to save or merge it",
        name_of(values.dtype()));
  std::vector<float> host(static_cast<size_t>(values.elements()));
  backend.download(values, std::as_writable_bytes(std::span(host)));
  const auto read = [&](const Segment& segment) {
    const auto begin = host.begin() + segment.begin;
    return std::vector<float>(begin, begin + segment.shape.elements());
  };
  Adapter adapter;
  adapter.config = config;
  adapter.base_hash = base_hash;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Segment& a = segments[2 * i];
    const Segment& b = segments[2 * i + 1];
    adapter.entries.push_back(
        {layers[i]->name, a.shape[0], a.shape[1], b.shape[0], read(a), read(b)});
  }
  return adapter;
}

void AttachedAdapter::keep_for_inference(Backend& backend) {
  grads = Tensor();
  const bool all_narrow = std::ranges::all_of(layers, [&](const LinearLayer* layer) {
    return backend.adapter_type(layer->weight.value.dtype()) == DType::bf16;
  });
  if (all_narrow && values.dtype() != DType::bf16) {
    const Tensor narrow = backend.allocate(values.shape(), DType::bf16);
    backend.cast(values, narrow);
    values = narrow;
  }
  const auto frozen = [this](const Segment& segment) {
    return Parameter{segment.name, values.part(segment.begin, segment.shape), Tensor()};
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i]->lora->a = frozen(segments[2 * i]);
    layers[i]->lora->b = frozen(segments[2 * i + 1]);
  }
}

void AttachedAdapter::detach() {
  for (LinearLayer* layer : layers) {
    layer->lora.reset();
  }
  layers.clear();
}

AttachedAdapter attach_new(Backend& backend, std::span<LinearLayer* const> layers,
                           const AdapterConfig& config, uint64_t seed) {
  const AdapterRules rules(config, "LoRA");
  check_names_match(layers, config.target_modules);
  const std::vector<Target> targets = select(layers, rules);
  check(!targets.empty(),
        "target modules: they select no layer; there are {} (or write all-linear)",
        names_available(layers));
  AdapterConfig resolved = config;
  if (config.target_modules.kind == ModuleSelection::Kind::all_linear) {
    resolved.target_modules = {ModuleSelection::Kind::names, names_of(layers, targets), {}};
    resolved.exclude_modules = {};
    resolved.layers_to_transform.clear();
    resolved.layers_pattern.clear();
  }
  return build(backend, targets, resolved, Trainable::yes,
               [seed](const Target& target, std::span<float> a, std::span<float>) {
                 const Random random(seed, stream_of("lora_A", target.layer->name));
                 const float bound =
                     1.0F / std::sqrt(static_cast<float>(target.layer->in_features()));
                 for (size_t i = 0; i < a.size(); ++i) {
                   a[i] = (2.0F * random.uniform(i) - 1.0F) * bound;
                 }
               });
}

AttachedAdapter attach(Backend& backend, std::span<LinearLayer* const> layers,
                       const Adapter& adapter, Trainable trainable) {
  const AdapterRules rules(adapter.config, "adapter");
  const auto entries = fit(layers, adapter, rules);
  std::vector<Target> targets;
  for (LinearLayer* layer : layers) {
    const auto found = entries.find(layer);
    if (found != entries.end()) {
      targets.push_back({layer, found->second->rank, rules.scaling(layer->name)});
    }
  }
  AttachedAdapter attached =
      build(backend, targets, adapter.config, trainable,
            [&](const Target& target, std::span<float> a, std::span<float> b) {
              const AdapterEntry& entry = *entries.at(target.layer);
              std::copy(entry.a.begin(), entry.a.end(), a.begin());
              std::copy(entry.b.begin(), entry.b.end(), b.begin());
            });
  attached.base_hash = adapter.base_hash;
  const std::string inert = adapter.why_inert();
  if (trainable == Trainable::no && !inert.empty()) {
    log_warning("the adapter changes nothing: {}", inert);
  }
  return attached;
}

}  // namespace wick
