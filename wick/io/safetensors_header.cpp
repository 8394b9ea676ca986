// The JSON header of a safetensors file, parsed event by event and checked against the file.
#include "wick/io/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "wick/base/error.h"

namespace wick {

namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxExtents = 64;
constexpr size_t kMaxShownName = 120;

// The number types of the format. wick computes with the first three and holds the fourth.
struct NumberType {
  std::string_view name;
  uint64_t bits;
};
constexpr std::array kNumberTypes{
    NumberType{"F32", 32},        NumberType{"F16", 16},    NumberType{"BF16", 16},
    NumberType{"I32", 32},        NumberType{"F64", 64},    NumberType{"I64", 64},
    NumberType{"U64", 64},        NumberType{"C64", 64},    NumberType{"U32", 32},
    NumberType{"I16", 16},        NumberType{"U16", 16},    NumberType{"I8", 8},
    NumberType{"U8", 8},          NumberType{"BOOL", 8},    NumberType{"F8_E4M3", 8},
    NumberType{"F8_E5M2", 8},     NumberType{"F8_E8M0", 8}, NumberType{"F8_E4M3FNUZ", 8},
    NumberType{"F8_E5M2FNUZ", 8}, NumberType{"F6_E2M3", 6}, NumberType{"F6_E3M2", 6},
    NumberType{"F4", 4}};

// One tensor as the header has it, before it is checked against the file.
struct RawEntry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> extents;
  std::optional<std::vector<uint64_t>> offsets;
};

// Takes the header's JSON event by event and refuses what is out of place at once, so a hostile
// header costs no more memory than its own length. Unknown keys of a tensor are passed over.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  std::vector<RawEntry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override {
    if (depth_ == 1 && in_metadata_) {
      in_metadata_ = false;
      return true;
    }
    return scalar("null");
  }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t value) override { return scalar(fmt::format("{}", value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (numbers_ == nullptr) {
      return scalar(fmt::format("{}", value));
    }
    check(numbers_->size() < kMaxExtents, "{}: tensor {}: \"{}\" has more than {} entries", file_,
          tensor(), field_, kMaxExtents);
    numbers_->push_back(value);
    return true;
  }
  bool number_float(number_float_t, const string_t& text) override { return scalar(text); }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata[key_] = value;
      return true;
    }
    if (depth_ == 2 && skip_ == 0 && field_ == "dtype") {
      entries.back().dtype = value;
      return true;
    }
    return scalar(shown_name(value));
  }
  bool binary(binary_t&) override { return scalar("binary"); }

  bool start_object(std::size_t) override {
    if (depth_ == 0 || (depth_ == 1 && skip_ == 0)) {
      ++depth_;
      field_.clear();
      return true;
    }
    return open("an object");
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      check(names_.insert(name).second, "{}: the header names {} twice", file_, shown_name(name));
      in_metadata_ = name == "__metadata__";
      if (!in_metadata_) {
        entries.push_back({name, {}, {}, {}});
      }
    } else if (skip_ == 0 && in_metadata_) {
      key_ = name;
    } else if (skip_ == 0) {
      field_ = name;
      const RawEntry& entry = entries.back();
      check(!(name == "dtype" && entry.dtype) && !(name == "shape" && entry.extents) &&
                !(name == "data_offsets" && entry.offsets),
            "{}: tensor {}: \"{}\" stands twice", file_, tensor(), name);
    }
    return true;
  }
  bool end_object() override {
    if (skip_ > 0) {
      --skip_;
    } else {
      --depth_;
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ == 2 && skip_ == 0 && !in_metadata_ && numbers_ == nullptr) {
      if (field_ == "shape") {
        numbers_ = &entries.back().extents.emplace();
        return true;
      }
      if (field_ == "data_offsets") {
        numbers_ = &entries.back().offsets.emplace();
        return true;
      }
    }
    return open("an array");
  }
  bool end_array() override {
    if (numbers_ != nullptr) {
      numbers_ = nullptr;
    } else {
      --skip_;
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // Only a syntax error has a position worth telling: 406 is a number beyond a double.
    check(error.id != 406, "{}: the header holds a number that is out of range, near offset {}",
          file_, kLengthBytes + position);
    fail("{}: the header is not JSON: error at offset {}", file_, kLengthBytes + position);
  }

 private:
  std::string tensor() const { return shown_name(entries.back().name); }
  bool known_field() const {
    return field_ == "dtype" || field_ == "shape" || field_ == "data_offsets";
  }
  // Where the value stands nothing but something else may.
  void refuse(const std::string& what) const {
    check(depth_ != 0, "{}: the header is {}, not a JSON object", file_, what);
    if (in_metadata_) {
      check(depth_ != 1, "{}: \"__metadata__\" is {}, not an object or null", file_, what);
      fail("{}: \"__metadata__\" entry {} is {}, not a string", file_, shown_name(key_), what);
    }
    check(depth_ != 1, "{}: tensor {} is {}, not an object", file_, tensor(), what);
    check(numbers_ == nullptr, "{}: tensor {}: \"{}\" holds {}, not a whole number from 0 up",
          file_, tensor(), field_, what);
    check(!known_field(), "{}: tensor {}: \"{}\" is {}, not {}", file_, tensor(), field_, what,
          field_ == "dtype" ? "a string" : "an array");
  }
  bool scalar(const std::string& what) const {
    if (skip_ == 0) {
      refuse(what);
    }
    return true;
  }
  bool open(const char* what) {
    if (skip_ == 0) {
      refuse(what);
    }
    check(skip_ < 64, "{}: tensor {}: nested more than 64 levels deep", file_, tensor());
    ++skip_;
    return true;
  }

  const std::string& file_;
  int depth_ = 0;  // 1 between the names, 2 inside a tensor or the metadata
  int skip_ = 0;   // levels inside a value of an unknown key
  bool in_metadata_ = false;
  std::string key_;    // of the metadata
  std::string field_;  // of a tensor
  std::vector<uint64_t>* numbers_ = nullptr;
  std::set<std::string, std::less<>> names_;
};

uint64_t bits_of(const std::string& file, const RawEntry& raw) {
  for (const NumberType& type : kNumberTypes) {
    if (type.name == *raw.dtype) {
      return type.bits;
    }
  }
  fail("{}: tensor {}: unknown dtype {}", file, shown_name(raw.name), shown_name(*raw.dtype));
}

std::string list(std::span<const uint64_t> values) {
  return fmt::format("[{}]", fmt::join(values, ", "));
}

// The size that shape and dtype ask for.
uint64_t wanted_bytes(const std::string& file, const RawEntry& raw) {
  uint64_t product = bits_of(file, raw);
  bool overflow = false;
  for (const uint64_t extent : *raw.extents) {
    overflow |= __builtin_mul_overflow(product, extent, &product);
  }
  // A zero extent makes the tensor empty, whatever the order of the factors.
  if (std::find(raw.extents->begin(), raw.extents->end(), 0U) != raw.extents->end()) {
    overflow = std::any_of(raw.extents->begin(), raw.extents->end(), [](uint64_t extent) {
      return extent > uint64_t{std::numeric_limits<int64_t>::max()};
    });
    product = 0;
  }
  check(!overflow, "{}: tensor {}: shape {} of {} overflows", file, shown_name(raw.name),
        list(*raw.extents), *raw.dtype);
  check(product % 8 == 0, "{}: tensor {}: shape {} of {} is not a whole number of bytes", file,
        shown_name(raw.name), list(*raw.extents), *raw.dtype);
  return product / 8;
}

SafetensorsEntry checked_entry(const std::string& file, const RawEntry& raw, uint64_t data_begin,
                               uint64_t file_bytes) {
  const std::string name = shown_name(raw.name);
  check(raw.dtype.has_value(), "{}: tensor {}: \"dtype\" is missing", file, name);
  check(raw.extents.has_value(), "{}: tensor {}: \"shape\" is missing", file, name);
  check(raw.offsets.has_value(), "{}: tensor {}: \"data_offsets\" is missing", file, name);
  check(raw.offsets->size() == 2, "{}: tensor {}: \"data_offsets\" has {} entries, not 2", file,
        name, raw.offsets->size());
  const uint64_t begin = (*raw.offsets)[0];
  const uint64_t end = (*raw.offsets)[1];
  const uint64_t data_bytes = file_bytes - data_begin;
  check(begin <= end, "{}: tensor {}: data_offsets {} run backward", file, name,
        list(*raw.offsets));
  check(end <= data_bytes,
        "{}: tensor {}: data_offsets {} reach beyond the {} bytes of data; was the file cut off?",
        file, name, list(*raw.offsets), data_bytes);
  const uint64_t wanted = wanted_bytes(file, raw);
  check(wanted == end - begin,
        "{}: tensor {}: shape {} of {} is {} bytes, but data_offsets {} "
        "span {}",
        file, name, list(*raw.extents), *raw.dtype, wanted, list(*raw.offsets), end - begin);
  SafetensorsEntry entry;
  entry.dtype = *raw.dtype;
  entry.extents.assign(raw.extents->begin(), raw.extents->end());
  entry.begin = data_begin + begin;
  entry.bytes = wanted;
  return entry;
}

// The spans must lie end to end from the header to the end of the file.
void check_cover(const std::string& file, const SafetensorsEntries& entries, size_t data_begin,
                 size_t file_bytes) {
  std::vector<std::pair<const std::string*, const SafetensorsEntry*>> order;
  for (const auto& [name, entry] : entries) {
    order.emplace_back(&name, &entry);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->bytes) <
           std::pair(b.second->begin, b.second->bytes);
  });
  size_t at = data_begin;
  const std::string* previous = nullptr;
  for (const auto& [name, entry] : order) {
    check(entry->begin >= at,
          "{}: tensors {} and {} overlap: one ends at data offset {}, the other "
          "begins at {}",
          file, previous == nullptr ? "" : shown_name(*previous), shown_name(*name),
          at - data_begin, entry->begin - data_begin);
    check(entry->begin == at, "{}: {} bytes before tensor {} at data offset {} belong to no tensor",
          file, entry->begin - at, shown_name(*name), entry->begin - data_begin);
    at += entry->bytes;
    previous = name;
  }
  check(at == file_bytes, "{}: {} bytes at the end belong to no tensor, from offset {}", file,
        file_bytes - at, at);
}

}  // namespace

std::string shown_name(std::string_view name) {
  std::string text = Json(std::string(name.substr(0, kMaxShownName)))
                         .dump(-1, ' ', false, Json::error_handler_t::replace);
  return name.size() > kMaxShownName ? text + "..." : text;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> bytes,
                                           const std::string& name) {
  check(bytes.size() >= kLengthBytes,
        "{}: {} bytes long, too short for a safetensors file; was it cut off?", name, bytes.size());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  check(
      header_bytes <= kMaxHeaderBytes,
      "{}: the header length {} is over the format's limit of {} bytes; is it a safetensors file?",
      name, header_bytes, kMaxHeaderBytes);
  check(header_bytes <= bytes.size() - kLengthBytes,
        "{}: the header length {} reaches beyond the file's {} bytes; was it cut off?", name,
        header_bytes, bytes.size());
  const char* text = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  HeaderReader reader(name);
  Json::sax_parse(text, text + header_bytes, &reader);
  SafetensorsHeader header;
  const size_t data_begin = kLengthBytes + header_bytes;
  for (const RawEntry& raw : reader.entries) {
    header.entries.emplace(raw.name, checked_entry(name, raw, data_begin, bytes.size()));
  }
  check_cover(name, header.entries, data_begin, bytes.size());
  header.metadata = std::move(reader.metadata);
  return header;
}

}  // namespace wick
