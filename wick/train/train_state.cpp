// The state as safetensors: three tensors, and the rest as JSON in the metadata.
#include "wick/train/train_state.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "wick/base/error.h"
#include "wick/io/safetensors.h"

namespace wick {

namespace {

using Json = nlohmann::json;

constexpr const char* kMetadataKey = "wick_train_state";
constexpr int kVersion = 1;

Json to_json(const TrainState& state) {
  return {{"version", kVersion},
          {"step", state.step},
          {"epoch", state.cursor.epoch},
          {"position", state.cursor.position},
          {"tokens", state.tokens},
          {"target_tokens", state.target_tokens},
          {"window_loss_sum", state.window_loss_sum},
          {"window_target_tokens", state.window_target_tokens},
          {"identity", state.identity}};
}

TrainState from_json(const std::string& text, const std::string& file) {
  TrainState state;
  try {
    const Json json = Json::parse(text);
    const int version = json.at("version");
    check(version == kVersion, "{}: the state has version {}, this program reads {}", file, version,
          kVersion);
    json.at("step").get_to(state.step);
    json.at("epoch").get_to(state.cursor.epoch);
    json.at("position").get_to(state.cursor.position);
    json.at("tokens").get_to(state.tokens);
    json.at("target_tokens").get_to(state.target_tokens);
    json.at("window_loss_sum").get_to(state.window_loss_sum);
    json.at("window_target_tokens").get_to(state.window_target_tokens);
    json.at("identity").get_to(state.identity);
  } catch (const Json::exception& error) {
    fail("{}: is no training state: {}", file, error.what());
  }
  check(state.step >= 0, "{}: is no training state: step {}", file, state.step);
  return state;
}

// What differs, as `pattern` says it of name, saved and wanted value; empty if nothing does.
std::string differences_of(const std::map<std::string, std::string>& saved,
                           const std::map<std::string, std::string>& wanted,
                           fmt::format_string<std::string, std::string, std::string> pattern) {
  std::string differences;
  for (const auto& [name, value] : wanted) {
    const auto found = saved.find(name);
    const std::string was = found == saved.end() ? "absent" : found->second;
    if (was != value) {
      differences += differences.empty() ? "" : "; ";
      differences += fmt::format(pattern, std::string(name), std::string(was), std::string(value));
    }
  }
  return differences;
}

void broadcast(Communicator& ranks, Backend& backend, const Tensor& tensor) {
  std::vector<std::byte> host(tensor.bytes());
  backend.download(tensor, host);
  ranks.broadcast(host);
  backend.upload(host, tensor);
}

void fill(Backend& backend, const SafetensorsFile& file, const char* name, const Tensor& tensor) {
  check(file.dtype(name) == DType::f32 && file.shape(name) == tensor.shape(),
        "{}: {} is {} {}, this run wants f32 {}", file.path().string(), name,
        name_of(file.dtype(name)), file.shape(name).to_string(), tensor.shape().to_string());
  backend.upload(file.bytes(name), tensor);
}

}  // namespace

void save_train_state(Backend& backend, const std::filesystem::path& file, const TrainState& state,
                      const StateTensors& tensors) {
  std::vector<SafetensorsItem> items;
  items.push_back(safetensors_item("values", backend, tensors.values));
  items.push_back(safetensors_item("first_moment", backend, tensors.first_moment));
  items.push_back(safetensors_item("second_moment", backend, tensors.second_moment));
  write_safetensors(file, std::move(items), {{kMetadataKey, to_json(state).dump()}});
}

TrainState load_train_state(Backend& backend, const std::filesystem::path& path,
                            const std::map<std::string, std::string>& identity,
                            const StateTensors& tensors) {
  const SafetensorsFile file(path);
  const auto found = file.metadata().find(kMetadataKey);
  check(found != file.metadata().end(), "{}: is no training state: it has no {}", path.string(),
        kMetadataKey);
  TrainState state = from_json(found->second, path.string());
  const std::string differences = differences_of(state.identity, identity, "{} was {}, now is {}");
  check(differences.empty(),
        "{}: is of another run: {}; give the same options, or start anew with --overwrite",
        path.string(), differences);
  fill(backend, file, "values", tensors.values);
  fill(backend, file, "first_moment", tensors.first_moment);
  fill(backend, file, "second_moment", tensors.second_moment);
  return state;
}

void check_same_run(Communicator& ranks, const std::map<std::string, std::string>& identity) {
  const Json first = Json::parse(broadcast_text(ranks, Json(identity).dump()));
  const std::string differences = differences_of(first, identity, "{0} is {2}, not {1}");
  check(differences.empty(), "this process trains something else than rank 0: {}", differences);
}

void share_train_state(Communicator& ranks, Backend& backend, TrainState& state,
                       const StateTensors& tensors) {
  if (ranks.place().size == 1) {
    return;
  }
  state = from_json(broadcast_text(ranks, to_json(state).dump()), "rank 0");
  for (const Tensor& tensor : {tensors.values, tensors.first_moment, tensors.second_moment}) {
    broadcast(ranks, backend, tensor);
  }
}

}  // namespace wick
