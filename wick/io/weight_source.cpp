// Weights from one safetensors file, from shards, or from memory.
#include "wick/io/weight_source.h"

#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/io/json_file.h"
#include "wick/io/mlx_quantized.h"
#include "wick/io/safetensors.h"

namespace wick {

namespace {

using Json = nlohmann::json;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = 100'000'000;

// One file, or several behind an index: each name leads to the file that holds it.
class SafetensorsWeights : public WeightSource {
 public:
  SafetensorsWeights(std::string description, SafetensorsFiles of)
      : description_(std::move(description)), file_of_(std::move(of)) {}

  std::string description() const override { return description_; }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, file] : file_of_) {
      result.push_back(name);
    }
    return result;
  }
  bool has(std::string_view name) const override { return file_of_.contains(name); }
  WeightInfo info(std::string_view name) const override {
    const SafetensorsFile& file = find(name);
    return {file.shape(name), file.dtype(name)};
  }

 private:
  const SafetensorsFile& find(std::string_view name) const {
    const auto found = file_of_.find(name);
    check(found != file_of_.end(), "{}: has no tensor \"{}\"", description_, name);
    return *found->second;
  }
  Tensor read(Backend& backend, std::string_view name) const override {
    return find(name).load(backend, name);
  }

  std::string description_;
  SafetensorsFiles file_of_;
};

SafetensorsFiles open_single(const std::filesystem::path& path) {
  const auto file = std::make_shared<const SafetensorsFile>(path);
  SafetensorsFiles file_of;
  for (const auto& [name, entry] : file->entries()) {
    file_of.emplace(name, file);
  }
  return file_of;
}

// Tensor name to shard file name.
std::map<std::string, std::string> read_index(const std::filesystem::path& path) {
  const Json json = read_json_object(path, kMaxIndexBytes);
  const auto map = json.find("weight_map");
  check(map != json.end() && map->is_object(), "{}: has no object \"weight_map\"", path.string());
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, shard] : map->items()) {
    check(shard.is_string(), "{}: \"weight_map\" gives no file name for tensor \"{}\"",
          path.string(), name);
    const auto file = shard.get<std::string>();
    check(!file.empty() && file != "." && file != ".." && file.find('/') == std::string::npos &&
              file.find('\0') == std::string::npos,
          "{}: tensor \"{}\": \"{}\" is not the name of a file in the same folder", path.string(),
          name, file);
    shard_of.emplace(name, file);
  }
  return shard_of;
}

SafetensorsFiles open_shards(const std::filesystem::path& index) {
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> shards;
  SafetensorsFiles file_of;
  for (const auto& [name, file] : read_index(index)) {
    std::shared_ptr<const SafetensorsFile>& shard = shards[file];
    if (shard == nullptr) {
      const std::filesystem::path path = index.parent_path() / file;
      check(std::filesystem::exists(path),
            "{}: tensor \"{}\" should be in shard {}, which is not there", index.string(), name,
            file);
      shard = std::make_shared<const SafetensorsFile>(path);
    }
    check(shard->has(name), "{}: tensor \"{}\" should be in shard {}, which does not hold it",
          index.string(), name, file);
    file_of.emplace(name, shard);
  }
  return file_of;
}

// Plain or, where the folder's config.json says so, dequantised.
std::unique_ptr<WeightSource> as_source(const std::filesystem::path& folder, const char* file,
                                        SafetensorsFiles file_of) {
  const std::filesystem::path config = folder / kConfigFile;
  std::string description = (folder / file).string();
  if (std::filesystem::exists(config)) {
    const auto quantization = read_mlx_quantization(read_json_object(config), config.string());
    if (quantization.has_value()) {
      return dequantized_mlx_weights(std::move(description), std::move(file_of), *quantization);
    }
  }
  return std::make_unique<SafetensorsWeights>(std::move(description), std::move(file_of));
}

}  // namespace

Tensor WeightSource::load(Backend& backend, std::string_view name, const Shape& expected) const {
  check(has(name), "{}: the tensor \"{}\" {} is missing", description(), name,
        expected.to_string());
  const WeightInfo found = info(name);
  check(found.shape == expected, "{}: tensor \"{}\" has shape {}, the model needs {}",
        description(), name, found.shape.to_string(), expected.to_string());
  check(found.dtype != DType::i32, "{}: tensor \"{}\" has dtype i32, not a floating-point one",
        description(), name);
  return read(backend, name);
}

bool has_weights(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / kSingleFile) ||
         std::filesystem::exists(folder / kIndexFile);
}

std::unique_ptr<WeightSource> open_weights(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / kSingleFile)) {
    return as_source(folder, kSingleFile, open_single(folder / kSingleFile));
  }
  if (std::filesystem::exists(folder / kIndexFile)) {
    return as_source(folder, kIndexFile, open_shards(folder / kIndexFile));
  }
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    check(!std::filesystem::exists(folder / other),
          "{}: holds {} only; wick reads safetensors: convert the weights to {}", folder.string(),
          other, kSingleFile);
  }
  fail("{}: no weights: neither {} nor {} is there", folder.string(), kSingleFile, kIndexFile);
}

void MemoryWeights::put(std::string name, Tensor tensor) {
  tensors_.insert_or_assign(std::move(name), std::move(tensor));
}

std::vector<std::string> MemoryWeights::names() const {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : tensors_) {
    result.push_back(name);
  }
  return result;
}

WeightInfo MemoryWeights::info(std::string_view name) const {
  const auto found = tensors_.find(name);
  check(found != tensors_.end(), "{}: has no tensor \"{}\"", description(), name);
  return {found->second.shape(), found->second.dtype()};
}

Tensor MemoryWeights::read(Backend&, std::string_view name) const {
  return tensors_.find(name)->second;
}

}  // namespace wick
