// Writing and reading of .npy.
#include "wick/io/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <string>

#include "wick/base/error.h"
#include "wick/base/file.h"

namespace wick {

namespace {

static_assert(std::endian::native == std::endian::little, "'<f4' is written as it lies");

constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
constexpr size_t kPrefixBytes = 10;  // with the u16 header length
constexpr size_t kAlignment = 64;
constexpr std::string_view kDictBegin = "{'descr': '<f4', 'fortran_order': False, 'shape': (";

std::string header_of(const Shape& shape) {
  std::string text(kDictBegin);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  text += shape.rank() == 1 ? ",), }" : "), }";
  const size_t padded = (kPrefixBytes + text.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  text.resize(padded - kPrefixBytes - 1, ' ');
  return text + "\n";
}

// The extents between the brackets; false where they are not plain numbers or too many.
bool parse_extents(std::string_view text, Shape& shape) {
  std::array<int64_t, Shape::kMaxRank> extents{};
  int rank = 0;
  while (!text.empty()) {
    int64_t extent = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
    if (error != std::errc() || extent < 0 || rank == Shape::kMaxRank) {
      return false;
    }
    extents[static_cast<size_t>(rank++)] = extent;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (!text.empty() && text.front() != ',') {
      return false;
    }
    text.remove_prefix(std::min(text.size(), text.find_first_not_of(", ")));
  }
  shape = Shape::of(std::span(extents).first(static_cast<size_t>(rank)));
  return true;
}

// The number of elements, or nothing if it has more bytes than `limit`.
bool elements_within(const Shape& shape, uint64_t limit, uint64_t& elements) {
  elements = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(shape[axis]), &elements)) {
      return false;
    }
  }
  return elements <= limit / sizeof(float);
}

}  // namespace

void write_npy(const std::filesystem::path& path, const Shape& shape,
               std::span<const float> values) {
  check(static_cast<size_t>(shape.elements()) == values.size(),
        "{}: shape {} needs {} values, got {}", path.string(), shape.to_string(), shape.elements(),
        values.size());
  const std::string header = header_of(shape);
  const auto length = static_cast<uint16_t>(header.size());
  AtomicFile file(path);
  file.write(kMagic);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  file.write(std::as_bytes(values));
  file.commit();
}

NpyArray read_npy(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  const std::string_view view(text);
  check(view.size() >= kPrefixBytes && view.starts_with(kMagic),
        "{}: not a .npy file of version 1.0", path.string());
  uint16_t length = 0;
  std::memcpy(&length, text.data() + kMagic.size(), sizeof(length));
  check(view.size() - kPrefixBytes >= length,
        "{}: the header length {} reaches beyond the file's {} bytes", path.string(), length,
        view.size());
  const std::string_view header = view.substr(kPrefixBytes, length);
  const size_t close = header.find(')');
  NpyArray array;
  check(header.starts_with(kDictBegin) && close != std::string_view::npos &&
            parse_extents(header.substr(kDictBegin.size(), close - kDictBegin.size()), array.shape),
        "{}: not a row-major array of little-endian f32 with at most {} dimensions", path.string(),
        Shape::kMaxRank);
  const std::string_view data = view.substr(kPrefixBytes + length);
  uint64_t elements = 0;
  check(elements_within(array.shape, data.size(), elements) &&
            elements * sizeof(float) == data.size(),
        "{}: shape {} does not fit the {} bytes of data", path.string(), array.shape.to_string(),
        data.size());
  array.values.resize(elements);
  std::copy(data.begin(), data.end(), reinterpret_cast<char*>(array.values.data()));
  return array;
}

}  // namespace wick
