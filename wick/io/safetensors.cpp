// Reading and writing of safetensors files.
#include "wick/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "wick/base/error.h"

namespace wick {

namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensors are mapped as they lie");

DType wick_type(const std::string& file, std::string_view name, std::string_view dtype) {
  if (dtype == "F32") {
    return DType::f32;
  }
  if (dtype == "F16") {
    return DType::f16;
  }
  if (dtype == "BF16") {
    return DType::bf16;
  }
  check(dtype == "I32", "{}: tensor {} has dtype {}; wick knows F32, F16, BF16 and I32", file,
        shown_name(name), dtype);
  return DType::i32;
}

std::string_view format_name(DType type) {
  switch (type) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "I32";
  }
  return "?";
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_shared<const MappedFile>(path)),
      header_(parse_safetensors_header(file_->bytes(), path.string())) {}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  const auto found = header_.entries.find(name);
  check(found != header_.entries.end(), "{}: has no tensor {}", path().string(), shown_name(name));
  return found->second;
}

DType SafetensorsFile::dtype(std::string_view name) const {
  return wick_type(path().string(), name, entry(name).dtype);
}

Shape SafetensorsFile::shape(std::string_view name) const {
  const std::vector<int64_t>& extents = entry(name).extents;
  check(extents.size() <= Shape::kMaxRank, "{}: tensor {} has {} dimensions, at most {} are read",
        path().string(), shown_name(name), extents.size(), Shape::kMaxRank);
  return Shape::of(extents);
}

std::span<const std::byte> SafetensorsFile::bytes(std::string_view name) const {
  const SafetensorsEntry& found = entry(name);
  return file_->bytes().subspan(found.begin, found.bytes);
}

std::vector<float> SafetensorsFile::floats(std::string_view name) const {
  const DType type = dtype(name);
  check(type != DType::i32, "{}: tensor {} has dtype I32, not a floating-point one",
        path().string(), shown_name(name));
  const std::span<const std::byte> from = bytes(name);
  std::vector<float> values(from.size() / size_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::f32) {
      std::memcpy(&values[i], from.data() + i * sizeof(float), sizeof(float));
      continue;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, from.data() + i * sizeof(bits), sizeof(bits));
    values[i] = type == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }
  return values;
}

Tensor SafetensorsFile::load(Backend& backend, std::string_view name) const {
  const DType type = dtype(name);
  const Shape extents = shape(name);
  const std::span<const std::byte> host = bytes(name);
  Tensor tensor = backend.adopt(host, file_, extents, type);
  if (tensor.address() != host.data()) {
    file_->forget(host);  // the device has a copy
  }
  return tensor;
}

SafetensorsItem safetensors_item(std::string name, const Shape& shape,
                                 std::span<const float> values) {
  check(static_cast<size_t>(shape.elements()) == values.size(),
        "safetensors: tensor {}: shape {} needs {} values, got {}", shown_name(name),
        shape.to_string(), shape.elements(), values.size());
  return {std::move(name), DType::f32, shape,
          [values](std::span<std::byte> to) { std::memcpy(to.data(), values.data(), to.size()); }};
}

SafetensorsItem safetensors_item(std::string name, Backend& backend, const Tensor& tensor) {
  return {std::move(name), tensor.dtype(), tensor.shape(),
          [&backend, tensor](std::span<std::byte> to) { backend.download(tensor, to); }};
}

void write_safetensors(AtomicFile& file, std::vector<SafetensorsItem> items,
                       const SafetensorsMetadata& metadata) {
  // Wide types first, as the reference writer does: every tensor is then aligned for its type.
  std::sort(items.begin(), items.end(), [](const SafetensorsItem& a, const SafetensorsItem& b) {
    const size_t a_size = size_of(a.dtype);
    const size_t b_size = size_of(b.dtype);
    return a_size != b_size ? a_size > b_size : a.name < b.name;
  });
  Json header = Json::object();
  if (!metadata.empty()) {
    header["__metadata__"] = metadata;
  }
  size_t at = 0;
  size_t largest = 0;
  for (const SafetensorsItem& item : items) {
    const size_t bytes = static_cast<size_t>(item.shape.elements()) * size_of(item.dtype);
    check(item.name != "__metadata__" && !header.contains(item.name),
          "safetensors: the tensor name {} is taken", shown_name(item.name));
    Json extents = Json::array();
    for (int axis = 0; axis < item.shape.rank(); ++axis) {
      extents.push_back(item.shape[axis]);
    }
    header[item.name] = {{"dtype", format_name(item.dtype)},
                         {"shape", std::move(extents)},
                         {"data_offsets", {at, at + bytes}}};
    at += bytes;
    largest = std::max(largest, bytes);
  }
  // A name from outside (of a folder, say) may not be UTF-8; that must not keep the file from being
  // written.
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  std::vector<std::byte> scratch(largest);
  for (const SafetensorsItem& item : items) {
    const std::span<std::byte> to(scratch.data(),
                                  static_cast<size_t>(item.shape.elements()) * size_of(item.dtype));
    if (!to.empty()) {
      item.fill(to);
    }
    file.write(to);
  }
}

void write_safetensors(const std::filesystem::path& path, std::vector<SafetensorsItem> items,
                       const SafetensorsMetadata& metadata) {
  AtomicFile file(path);
  write_safetensors(file, std::move(items), metadata);
  file.commit();
}

}  // namespace wick
