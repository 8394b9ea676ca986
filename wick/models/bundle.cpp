// Opening a model folder, and writing one whole.
#include "wick/models/bundle.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "wick/base/error.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/io/safetensors.h"
#include "wick/io/weight_source.h"

namespace wick {

namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// What belongs to the model beside config and weights, copied as it is.
constexpr const char* kCopiedFiles[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
};

ModelConfig open_config(const fs::path& folder) {
  std::error_code error;
  check(fs::exists(folder, error), "{}: {}", folder.string(),
        error ? "cannot open: " + error.message() : "no such folder");
  check(fs::is_directory(folder), "{}: not a folder; a model is a folder with {}", folder.string(),
        kConfigFile);
  if (!fs::exists(folder / kConfigFile)) {
    check(!fs::exists(folder / "adapter_config.json"),
          "{}: holds an adapter, not a model: give the adapter's base model here", folder.string());
    fail("{}: has no {}: not a Hugging Face model folder", folder.string(), kConfigFile);
  }
  return parse_model_config(folder / kConfigFile);
}

std::unique_ptr<Decoder> make_decoder(Backend& backend, const fs::path& folder,
                                      const ModelConfig& config, const OpenOptions& options) {
  if (options.random_weights) {
    return Decoder::random(backend, config, options.seed);
  }
  return std::make_unique<Decoder>(backend, config, *open_weights(folder), options.held);
}

// A folder under a temporary name beside its target; removed unless published.
class StagedFolder {
 public:
  explicit StagedFolder(const fs::path& target) : target_(target) {
    std::string name = (parent() / ("." + target.filename().string() + ".XXXXXX")).string();
    check(::mkdtemp(name.data()) != nullptr, "{}: cannot create: {}", target.string(),
          std::strerror(errno));
    path_ = name;
    fs::permissions(path_, fs::perms(0755));
  }
  ~StagedFolder() {
    std::error_code ignored;
    if (!published_) {
      fs::remove_all(path_, ignored);
    }
  }
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  const fs::path& path() const { return path_; }
  void publish() {
    check(::rename(path_.c_str(), target_.c_str()) == 0, "{}: cannot rename into place: {}",
          target_.string(), std::strerror(errno));
    published_ = true;
    const int fd = ::open(parent().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = fd >= 0 && ::fsync(fd) == 0;
    const int reason = errno;
    if (fd >= 0) {
      ::close(fd);
    }
    check(synced, "{}: cannot sync the folder: {}", parent().string(), std::strerror(reason));
  }

 private:
  fs::path parent() const { return target_.has_parent_path() ? target_.parent_path() : "."; }

  fs::path target_;
  fs::path path_;
  bool published_ = false;
};

// Files that appear together: each is written and synced before the first takes its name.
class FileGroup {
 public:
  explicit FileGroup(fs::path folder) : folder_(std::move(folder)) {}
  AtomicFile& add(const std::string& name) {
    files_.push_back(std::make_unique<AtomicFile>(folder_ / name));
    return *files_.back();
  }
  void add_text(const std::string& name, const std::string& text) {
    AtomicFile& file = add(name);
    file.write(text);
    file.finish();
  }
  void commit() {
    for (const std::unique_ptr<AtomicFile>& file : files_) {
      file->commit();
    }
  }

 private:
  fs::path folder_;
  std::vector<std::unique_ptr<AtomicFile>> files_;
};

const char* config_name(DType dtype) {
  return dtype == DType::f32 ? "float32" : dtype == DType::bf16 ? "bfloat16" : "float16";
}

// The source's config in its own order, with what has changed.
std::string new_config(const fs::path& source, DType dtype, bool tied) {
  const std::string text = read_text(source / kConfigFile, size_t{16} << 20);
  parse_json_object(text, (source / kConfigFile).string());
  auto json = nlohmann::ordered_json::parse(text);
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = config_name(dtype);
  if (json.contains("dtype")) {
    json.erase("torch_dtype");
  }
  json["tie_word_embeddings"] = tied;
  json.erase("quantization");  // the weights are written plain, however they were read
  json.erase("quantization_config");
  return json.dump(2) + "\n";
}

SafetensorsItem weight_item(Backend& backend, const Parameter& parameter, DType dtype) {
  const Tensor& value = parameter.value;
  if (value.dtype() == dtype) {
    return safetensors_item(parameter.name, backend, value);
  }
  return {parameter.name, dtype, value.shape(), [&backend, value, dtype](std::span<std::byte> to) {
            const Tensor converted = backend.allocate(value.shape(), dtype);
            backend.cast(value, converted);
            backend.download(converted, to);
          }};
}

int64_t bytes_of(const SafetensorsItem& item) {
  return item.shape.elements() * static_cast<int64_t>(size_of(item.dtype));
}

// Tensors in their order, as many a shard as fit; a tensor larger than a shard has its own.
std::vector<std::vector<SafetensorsItem>> make_shards(Decoder& decoder, DType dtype,
                                                      int64_t max_bytes) {
  std::vector<std::vector<SafetensorsItem>> shards(1);
  int64_t filled = 0;
  for (const Parameter* parameter : decoder.parameters()) {
    SafetensorsItem item = weight_item(decoder.backend(), *parameter, dtype);
    const int64_t bytes = bytes_of(item);
    if (filled + bytes > max_bytes && !shards.back().empty()) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    shards.back().push_back(std::move(item));
  }
  return shards;
}

// Writes the weight files and returns their names.
std::vector<std::string> write_weights(FileGroup& files,
                                       std::vector<std::vector<SafetensorsItem>> shards) {
  const SafetensorsMetadata metadata = {{"format", "pt"}};
  std::vector<std::string> names;
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    names.push_back(shards.size() == 1
                        ? kSingleFile
                        : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    for (const SafetensorsItem& item : shards[i]) {
      weight_map[item.name] = names.back();
      total += bytes_of(item);
    }
    AtomicFile& file = files.add(names.back());
    write_safetensors(file, std::move(shards[i]), metadata);
    file.finish();
  }
  if (shards.size() > 1) {
    names.push_back(kIndexFile);
    const nlohmann::json index = {{"metadata", {{"total_size", total}}},
                                  {"weight_map", std::move(weight_map)}};
    files.add_text(kIndexFile, index.dump(2) + "\n");
  }
  return names;
}

bool is_weight_file(const std::string& name) {
  return name == kSingleFile || name == kIndexFile ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

// Weight files of an older model under other names would be read in place of the new ones.
void remove_stale_weights(const fs::path& folder, const std::vector<std::string>& kept) {
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (is_weight_file(name) && std::find(kept.begin(), kept.end(), name) == kept.end()) {
      stale.push_back(entry.path());
    }
  }
  for (const fs::path& path : stale) {
    std::error_code error;
    fs::remove(path, error);
    check(!error, "{}: cannot remove: {}", path.string(), error.message());
  }
}

}  // namespace

Bundle open_bundle(Backend& backend, const fs::path& folder, const OpenOptions& options) {
  ModelConfig config = open_config(folder);
  Tokenizer tokenizer = Tokenizer::from_folder(folder);
  check(tokenizer.vocab_size() <= config.vocab_size,
        "{}: tokenizer.json has ids up to {}, but config.json gives the model a vocabulary of {}",
        folder.string(), tokenizer.vocab_size() - 1, config.vocab_size);
  std::unique_ptr<Decoder> decoder = make_decoder(backend, folder, config, options);
  return {folder, std::move(config), std::move(tokenizer), std::move(decoder)};
}

std::unique_ptr<Decoder> open_decoder(Backend& backend, const fs::path& folder,
                                      const OpenOptions& options) {
  return make_decoder(backend, folder, open_config(folder), options);
}

void save_model_folder(const fs::path& folder, const fs::path& source, Decoder& decoder,
                       const SaveOptions& options) {
  const fs::path target = folder.has_filename() ? folder : folder.parent_path();
  const bool fresh = !fs::exists(target) || fs::is_empty(target);
  check(fresh || fs::is_directory(target), "{}: is a file, not a folder", target.string());
  check(options.overwrite || (!fs::exists(target / kConfigFile) && !has_weights(target)),
        "{}: holds a model already; nothing was written (--overwrite replaces it)",
        target.string());
  std::optional<StagedFolder> staged;
  if (fresh) {
    std::error_code error;
    fs::create_directories(target.has_parent_path() ? target.parent_path() : ".", error);
    check(!error, "{}: cannot create: {}", target.parent_path().string(), error.message());
    staged.emplace(target);
  }
  FileGroup files(fresh ? staged->path() : target);
  const DType dtype = options.dtype.value_or(decoder.config().dtype);
  const std::vector<std::string> weights =
      write_weights(files, make_shards(decoder, dtype, options.max_shard_bytes));
  files.add_text(kConfigFile, new_config(source, dtype, decoder.tied()));
  for (const char* name : kCopiedFiles) {
    if (fs::exists(source / name)) {
      files.add_text(name, read_text(source / name));
    }
  }
  files.commit();
  if (fresh) {
    staged->publish();
  } else {
    remove_stale_weights(target, weights);
  }
}

}  // namespace wick
