// The two kinds.
#include "wick/train/trained_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"

namespace wick {

namespace {

// "scaling 2", or the range of them where modules differ.
std::string scaling_of(const AttachedAdapter& adapter) {
  float low = adapter.layers.front()->lora->scaling;
  float high = low;
  for (const LinearLayer* layer : adapter.layers) {
    low = std::min(low, layer->lora->scaling);
    high = std::max(high, layer->lora->scaling);
  }
  return low == high ? fmt::format("scaling {:.4g}", low)
                     : fmt::format("scaling {:.4g} to {:.4g}", low, high);
}

// "28 layers (down_proj, gate_proj)".
std::string names_of(const std::vector<LinearLayer*>& layers) {
  std::map<std::string, int> counts;
  for (const LinearLayer* layer : layers) {
    ++counts[layer->name.substr(layer->name.rfind('.') + 1)];
  }
  std::string names;
  for (const auto& [name, count] : counts) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return fmt::format("{} layers ({})", layers.size(), names);
}

class AdapterWeights : public TrainedWeights {
 public:
  AdapterWeights(Bundle& bundle, const AdapterConfig& config, uint64_t seed)
      : backend_(bundle.decoder->backend()) {
    AdapterConfig named = config;
    named.base_model_name_or_path = bundle.folder.string();
    adapter_ = attach_new(backend_, bundle.decoder->linears(), named, seed);
    adapter_.base_hash = base_config_hash(bundle.folder);
  }

  const Tensor& values() const override { return adapter_.values; }
  const Tensor& gradients() const override { return adapter_.grads; }
  std::vector<ParameterGroup> groups(float weight_decay) const override {
    // A and B are matrices; the gaps between them are zero and stay so.
    return {{0, adapter_.values.elements(), 1.0F, weight_decay}};
  }
  std::string describe() const override {
    const AdapterConfig& config = adapter_.config;
    return fmt::format("LoRA: rank {}, alpha {:.6g}{} ({}), dropout {:.4g}, on {}", config.rank,
                       config.alpha, config.use_rslora ? ", rsLoRA" : "", scaling_of(adapter_),
                       config.dropout, names_of(adapter_.layers));
  }
  int64_t parameters() const override { return adapter_.parameters(); }
  void save(const std::filesystem::path& folder) const override {
    write_peft(folder, adapter_.to_adapter(backend_));
  }

 private:
  Backend& backend_;
  AttachedAdapter adapter_;
};

class AllWeights : public TrainedWeights {
 public:
  AllWeights(Bundle& bundle, DType saved_dtype)
      : bundle_(bundle), saved_dtype_(saved_dtype), flat_(bundle.decoder->train_all_weights()) {}

  const Tensor& values() const override { return flat_.values; }
  const Tensor& gradients() const override { return flat_.grads; }
  std::vector<ParameterGroup> groups(float weight_decay) const override {
    std::vector<ParameterGroup> groups;
    for (const FlatParameters::Segment& segment : flat_.segments) {
      const float decay = segment.shape.rank() > 1 ? weight_decay : 0.0F;
      groups.push_back({segment.begin, segment.shape.elements(), 1.0F, decay});
    }
    return groups;
  }
  std::string describe() const override {
    return fmt::format("all weights, saved as {}", name_of(saved_dtype_));
  }
  int64_t parameters() const override { return flat_.values.elements(); }
  void save(const std::filesystem::path& folder) const override {
    save_model_folder(folder, bundle_.folder, *bundle_.decoder,
                      {.dtype = saved_dtype_, .overwrite = true});
  }

 private:
  Bundle& bundle_;
  DType saved_dtype_;
  FlatParameters flat_;
};

}  // namespace

std::unique_ptr<TrainedWeights> train_adapter(Bundle& bundle, const AdapterConfig& config,
                                              uint64_t seed) {
  return std::make_unique<AdapterWeights>(bundle, config, seed);
}

std::unique_ptr<TrainedWeights> train_all_weights(Bundle& bundle, DType saved_dtype) {
  return std::make_unique<AllWeights>(bundle, saved_dtype);
}

}  // namespace wick
