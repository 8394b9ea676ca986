// The safetensors format: named tensors behind a JSON header, read by memory map, written
// streaming.
//
// The layout and what is refused: safetensors_header.h. Once a SafetensorsFile is constructed,
// every tensor in it is known to lie inside the file. Errors name the file and the tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wick/base/file.h"
#include "wick/core/backend.h"
#include "wick/io/safetensors_header.h"

namespace wick {

// An open file; immutable, so it may be read from several threads at once.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_->path(); }
  // By name; every number type may be listed here, but `dtype` below knows only wick's.
  const SafetensorsEntries& entries() const { return header_.entries; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }
  bool has(std::string_view name) const { return header_.entries.contains(name); }

  // These throw Error where there is no such tensor, and `dtype` and `shape` where wick cannot hold
  // it: a number type other than F32, F16, BF16 and I32, or more than four dimensions.
  const SafetensorsEntry& entry(std::string_view name) const;
  DType dtype(std::string_view name) const;
  Shape shape(std::string_view name) const;
  // Not necessarily aligned for its number type.
  std::span<const std::byte> bytes(std::string_view name) const;
  // The values widened to f32 (from F32, F16 or BF16).
  std::vector<float> floats(std::string_view name) const;

  // A tensor over the mapped bytes where the back end can read them in place; it keeps the map
  // alive.
  Tensor load(Backend& backend, std::string_view name) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  SafetensorsHeader header_;
};

// The file that holds each tensor of a model, by the tensor's name.
using SafetensorsFiles = std::map<std::string, std::shared_ptr<const SafetensorsFile>, std::less<>>;

// A tensor to write. `fill` is called once, when its turn comes, with exactly the tensor's bytes
// (not for an empty one), so no more than one tensor is in host memory at a time.
struct SafetensorsItem {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::function<void(std::span<std::byte>)> fill;
};

// Items over values that must outlive the write.
SafetensorsItem safetensors_item(std::string name, const Shape& shape,
                                 std::span<const float> values);
SafetensorsItem safetensors_item(std::string name, Backend& backend, const Tensor& tensor);

// Writes the whole file, atomically. Names are unique and not "__metadata__" (else Error).
void write_safetensors(const std::filesystem::path& path, std::vector<SafetensorsItem> items,
                       const SafetensorsMetadata& metadata = {});
// The same into a file that the caller commits, to replace several files together.
void write_safetensors(AtomicFile& file, std::vector<SafetensorsItem> items,
                       const SafetensorsMetadata& metadata = {});

}  // namespace wick
