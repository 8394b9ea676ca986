// The header of a safetensors file: which tensors lie where.
//
// Layout: u64 little-endian header length N, N bytes of JSON, then the data. The JSON maps each
// name to {"dtype", "shape", "data_offsets": [begin, end)} with offsets from the start of the data,
// and may hold "__metadata__": an object of strings, or null.
// Source: https://github.com/huggingface/safetensors. As its reference reader does, this one wants
// a header of at most 100 MB and spans that cover the data exactly: no overlap, no hole, no rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

struct SafetensorsEntry {
  std::string dtype;  // as written: "F32", "BF16", "I64", ...
  std::vector<int64_t> extents;
  size_t begin = 0;  // first byte, from the start of the file
  size_t bytes = 0;
};

using SafetensorsEntries = std::map<std::string, SafetensorsEntry, std::less<>>;
using SafetensorsMetadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
  SafetensorsEntries entries;
  SafetensorsMetadata metadata;
};

// Of the file whose whole contents are `bytes`. A file is hostile until this has returned: every
// length is checked against it before anything is allocated. Throws Error with `name` (the file),
// the tensor or the offset, and both values.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> bytes,
                                           const std::string& name);

// A tensor's name for a message: quoted, cut short, control characters escaped.
std::string shown_name(std::string_view name);

}  // namespace wick
