// One object of a tokenizer.json with the place where it stands, for reading its fields with errors
// that name that place: "tokenizer.json: pre_tokenizer.pretokenizers[1]: ...".
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

class Component {
 public:
  // `value` must outlive this object and all that come from it.
  Component(const nlohmann::json& value, std::string file, std::string field = "");

  std::string where() const { return field_.empty() ? file_ : file_ + ": " + field_; }
  bool has(std::string_view key) const;  // present and not null
  std::string type() const { return string("type"); }

  std::string string(std::string_view key) const;
  std::string string(std::string_view key, std::string_view fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  // In [low, high].
  int64_t integer(std::string_view key, int64_t low, int64_t high) const;
  int64_t integer(std::string_view key, int64_t low, int64_t high, int64_t fallback) const;
  // A string of one code point.
  std::string character(std::string_view key) const;
  Component object(std::string_view key) const;
  // The objects of an array; none if the key is absent or null.
  std::vector<Component> objects(std::string_view key) const;
  const nlohmann::json& raw(std::string_view key) const;

  // Throws the error for a `type` that this program does not know.
  [[noreturn]] void fail_unknown(std::string_view kind, std::string_view known) const;

 private:
  [[noreturn]] void fail_field(std::string_view key, std::string_view expected) const;
  std::string child(std::string_view key) const;

  const nlohmann::json* value_;
  std::string file_;
  std::string field_;  // its path in the file; empty for the root
};

}  // namespace wick
