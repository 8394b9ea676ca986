// What config.json says of MLX's quantisation, and the weights behind it.
#include "wick/io/mlx_quantized.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "wick/base/error.h"
#include "wick/io/json_file.h"

namespace wick {

namespace {

using Json = nlohmann::json;

constexpr std::array kBits = {2, 3, 4, 5, 6, 8};
constexpr std::array kGroupSizes = {32, 64, 128};
constexpr int64_t kStagedValues = int64_t{1} << 18;

// ---- config.json

template <size_t N>
int one_of(const std::array<int, N>& allowed, const Json& object, const char* key,
           const std::string& where) {
  const auto found = object.find(key);
  check(found != object.end(), "{}: \"{}\" is missing", where, key);
  for (const int value : allowed) {
    if (*found == value) {
      return value;
    }
  }
  fail("{}: \"{}\" is {}; MLX knows {}", where, key, shown_json(*found), fmt::join(allowed, ", "));
}

void check_mode(const Json& object, const std::string& where) {
  const auto mode = object.find("mode");
  check(mode == object.end() || *mode == "affine",
        "{}: \"mode\" is {}; wick reads MLX's affine quantisation only: use the unquantised model, "
        "or convert it with mode affine",
        where, mode == object.end() ? "" : shown_json(*mode));
}

MlxFormat read_format(const Json& object, const std::string& where) {
  check_mode(object, where);
  return {one_of(kBits, object, "bits", where), one_of(kGroupSizes, object, "group_size", where)};
}

// The name that other quantisers write themselves into the block with; bitsandbytes did without.
void check_method(const Json& block, const std::string& where) {
  const bool old = block.contains("load_in_4bit") || block.contains("load_in_8bit");
  if (!block.contains("quant_method") && !old) {
    return;
  }
  fail(
      "{}: the weights are quantised by {}, which wick cannot read (MLX's affine quantisation is "
      "all that it knows): use the unquantised model",
      where, block.contains("quant_method") ? shown_json(block["quant_method"]) : "bitsandbytes");
}

MlxQuantization read_block(const Json& block, const std::string& where) {
  check(block.is_object(), "{} is {}, not an object", where, shown_json(block));
  check_method(block, where);
  MlxQuantization out;
  out.format = read_format(block, where);
  for (const auto& [key, value] : block.items()) {
    if (key == "bits" || key == "group_size" || key == "mode") {
      continue;
    }
    const std::string entry = fmt::format("{}: {}", where, shown_json(Json(key)));
    check(value.is_object() || value.is_boolean(),
          "{} is {}; a module's entry is an object, true or false", entry, shown_json(value));
    if (value == false) {
      out.modules.emplace(key, std::nullopt);
    } else {
      out.modules.emplace(key, value.is_object() ? read_format(value, entry) : out.format);
    }
  }
  return out;
}

// ---- weights

// A quantised module whose tensors fit each other.
struct Module {
  const SafetensorsFile* weight;
  const SafetensorsFile* scales;
  const SafetensorsFile* biases;
  std::string name;
  MlxFormat format;
  Shape shape;  // [out, in]
  DType dtype;
};

Shape matrix_shape(const SafetensorsFile& file, const std::string& name) {
  const Shape shape = file.shape(name);
  check(shape.rank() == 2 && shape.elements() > 0,
        "{}: tensor {} has shape {}; quantised weights are matrices", file.path().string(),
        shown_name(name), shape.to_string());
  return shape;
}

DType group_type(const SafetensorsFile& file, const std::string& name) {
  const std::string& type = file.entry(name).dtype;
  check(type == "F32" || type == "F16" || type == "BF16",
        "{}: tensor {} has dtype {}; scales and biases are F32, F16 or BF16", file.path().string(),
        shown_name(name), type);
  return file.dtype(name);
}

Module checked_module(const SafetensorsFiles& files, const std::string& name, MlxFormat format) {
  const std::string weight_name = name + ".weight";
  const auto weight = files.find(weight_name);
  const auto companion = [&](const char* ending) -> const SafetensorsFile& {
    const auto found = files.find(name + ending);
    check(found != files.end(), "{}: tensor {} is quantised, but {} is missing",
          weight->second->path().string(), shown_name(weight_name), shown_name(name + ending));
    return *found->second;
  };
  const SafetensorsFile& scales = companion(".scales");
  const SafetensorsFile& biases = companion(".biases");
  const SafetensorsFile& packed = *weight->second;
  check(packed.entry(weight_name).dtype == "U32",
        "{}: tensor {} has dtype {}; of a quantised module it is U32", packed.path().string(),
        shown_name(weight_name), packed.entry(weight_name).dtype);
  const DType dtype = group_type(scales, name + ".scales");
  check(group_type(biases, name + ".biases") == dtype,
        "{}: tensor {} has dtype {}, its scales have {}", biases.path().string(),
        shown_name(name + ".biases"), biases.entry(name + ".biases").dtype,
        scales.entry(name + ".scales").dtype);
  const Shape words = matrix_shape(packed, weight_name);
  const int64_t bits = words.columns() * 32;  // of a row, which lies in the file
  check(bits % (int64_t{format.bits} * format.group_size) == 0,
        "{}: tensor {} has shape {}, which does not hold whole groups of {} values of {} bits",
        packed.path().string(), shown_name(weight_name), words.to_string(), format.group_size,
        format.bits);
  const Shape shape = {words[0], bits / format.bits};
  const Shape groups = {words[0], shape[1] / format.group_size};
  for (const auto& [file, ending] :
       {std::pair(&scales, ".scales"), std::pair(&biases, ".biases")}) {
    const Shape found = file->shape(name + ending);
    check(found == groups,
          "{}: tensor {} has shape {}; with {} bits and group_size {} the weight's {} needs {}",
          file->path().string(), shown_name(name + ending), found.to_string(), format.bits,
          format.group_size, words.to_string(), groups.to_string());
  }
  return {&packed, &scales, &biases, name, format, shape, dtype};
}

// `count` values of `format.bits` from packed words, a scale and a bias a group.
void dequantize(const std::byte* words, MlxFormat format, const float* scales, const float* biases,
                std::span<float> out) {
  const uint64_t mask = (uint64_t{1} << format.bits) - 1;
  uint64_t window = 0;
  int held = 0;
  const auto group_size = static_cast<size_t>(format.group_size);
  for (size_t begin = 0; begin < out.size(); begin += group_size, ++scales, ++biases) {
    for (size_t i = begin; i < begin + group_size; ++i) {
      if (held < format.bits) {
        uint32_t word = 0;
        std::memcpy(&word, words, sizeof(word));
        words += sizeof(word);
        window |= uint64_t{word} << held;
        held += 32;
      }
      out[i] = *scales * static_cast<float>(static_cast<int32_t>(window & mask)) + *biases;
      window >>= format.bits;
      held -= format.bits;
    }
  }
}

// Values in the tensor's number type, laid into its own memory.
void upload_values(Backend& backend, std::span<const float> values, const Tensor& to) {
  if (to.dtype() == DType::f32) {
    backend.upload(std::as_bytes(values), to);
    return;
  }
  std::vector<uint16_t> narrow(values.size());
  if (to.dtype() == DType::bf16) {
    std::transform(values.begin(), values.end(), narrow.begin(),
                   [](float value) { return f32_to_bf16(value); });
  } else {
    std::transform(values.begin(), values.end(), narrow.begin(),
                   [](float value) { return f32_to_f16(value); });
  }
  backend.upload(std::as_bytes(std::span(narrow)), to);
}

Tensor load_module(Backend& backend, const Module& module) {
  const int64_t rows = module.shape[0];
  const int64_t columns = module.shape[1];
  const int64_t groups = columns / module.format.group_size;
  const std::byte* words = module.weight->bytes(module.name + ".weight").data();
  const std::vector<float> scales = module.scales->floats(module.name + ".scales");
  const std::vector<float> biases = module.biases->floats(module.name + ".biases");
  const int64_t step = std::clamp<int64_t>(kStagedValues / columns, 1, rows);
  std::vector<float> staged(static_cast<size_t>(step * columns));
  Tensor out = backend.allocate(module.shape, module.dtype);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min(step, rows - row);
    const std::span values = std::span(staged).first(static_cast<size_t>(count * columns));
    dequantize(words + row * columns * module.format.bits / 8, module.format,
               scales.data() + row * groups, biases.data() + row * groups, values);
    upload_values(backend, values, out.slice(row, count));
  }
  return out;
}

class DequantizedWeights : public WeightSource {
 public:
  DequantizedWeights(std::string description, SafetensorsFiles files,
                     const MlxQuantization& quantization)
      : description_(std::move(description)), files_(std::move(files)) {
    for (const std::string& name : module_names(quantization)) {
      const auto own = quantization.modules.find(name);
      const bool plain = own != quantization.modules.end() && !own->second.has_value();
      check(!plain, "{}: {} holds quantised values, but the entry of {} in config.json is false",
            description_, shown_name(name + ".weight"), shown_name(name));
      const MlxFormat format =
          own == quantization.modules.end() ? quantization.format : *own->second;
      modules_.emplace(name + ".weight", checked_module(files_, name, format));
    }
    for (const auto& [name, file] : files_) {
      if (!is_part(name)) {
        names_.push_back(name);
      }
    }
  }

  std::string description() const override { return description_; }
  std::vector<std::string> names() const override { return names_; }
  bool has(std::string_view name) const override {
    return std::binary_search(names_.begin(), names_.end(), name);
  }
  WeightInfo info(std::string_view name) const override {
    check(has(name), "{}: has no tensor \"{}\"", description_, name);
    if (const auto module = modules_.find(name); module != modules_.end()) {
      return {module->second.shape, module->second.dtype};
    }
    const SafetensorsFile& file = *files_.find(name)->second;
    return {file.shape(name), file.dtype(name)};
  }

 private:
  // With packed values, with scales, or with an entry of its own.
  std::vector<std::string> module_names(const MlxQuantization& quantization) const {
    constexpr std::string_view kWeight = ".weight";
    std::vector<std::string> result;
    for (const auto& [name, file] : files_) {
      if (!name.ends_with(kWeight)) {
        continue;
      }
      const std::string module = name.substr(0, name.size() - kWeight.size());
      const auto own = quantization.modules.find(module);
      const bool listed = own != quantization.modules.end() && own->second.has_value();
      if (file->entry(name).dtype == "U32" || files_.contains(module + ".scales") || listed) {
        result.push_back(module);
      }
    }
    return result;
  }
  // Scales or biases of a quantised module.
  bool is_part(std::string_view name) const {
    const size_t dot = name.rfind('.');
    const std::string_view ending = dot == std::string_view::npos ? "" : name.substr(dot);
    return (ending == ".scales" || ending == ".biases") &&
           modules_.contains(std::string(name.substr(0, dot)) + ".weight");
  }
  Tensor read(Backend& backend, std::string_view name) const override {
    const auto module = modules_.find(name);
    return module == modules_.end() ? files_.find(name)->second->load(backend, name)
                                    : load_module(backend, module->second);
  }

  std::string description_;
  SafetensorsFiles files_;
  std::map<std::string, Module, std::less<>> modules_;  // by the name of the weight
  std::vector<std::string> names_;                      // in order
};

}  // namespace

std::optional<MlxQuantization> read_mlx_quantization(const Json& config, const std::string& name) {
  std::optional<MlxQuantization> out;
  const Json* first = nullptr;
  for (const char* key : {"quantization_config", "quantization"}) {
    const auto block = config.find(key);
    if (block == config.end() || block->is_null()) {
      continue;
    }
    out = read_block(*block, fmt::format("{}: \"{}\"", name, key));
    check(first == nullptr || *first == *block,
          "{}: \"quantization\" and \"quantization_config\" differ; MLX writes the same into both",
          name);
    first = &*block;
  }
  return out;
}

std::unique_ptr<WeightSource> dequantized_mlx_weights(std::string description,
                                                      SafetensorsFiles files,
                                                      const MlxQuantization& quantization) {
  return std::make_unique<DequantizedWeights>(std::move(description), std::move(files),
                                              quantization);
}

}  // namespace wick
