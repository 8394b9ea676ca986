// Checked access to the fields of a JSON object.
#include "wick/text/component.h"

#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/text/unicode.h"

namespace wick {

Component::Component(const nlohmann::json& value, std::string file, std::string field)
    : value_(&value), file_(std::move(file)), field_(std::move(field)) {
  check(value.is_object(), "{}: must be an object, is {}", where(), value.type_name());
}

std::string Component::child(std::string_view key) const {
  return field_.empty() ? std::string(key) : fmt::format("{}.{}", field_, key);
}

void Component::fail_field(std::string_view key, std::string_view expected) const {
  const auto field = value_->find(key);
  if (field == value_->end()) {
    fail("{}: \"{}\" is missing; {} is expected", where(), key, expected);
  }
  std::string text = field->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) {
    text.resize(60);
    text += "...";
  }
  fail("{}: \"{}\" must be {}, is {}", where(), key, expected, text);
}

bool Component::has(std::string_view key) const {
  const auto field = value_->find(key);
  return field != value_->end() && !field->is_null();
}

const nlohmann::json& Component::raw(std::string_view key) const {
  const auto field = value_->find(key);
  if (field == value_->end()) {
    fail_field(key, "a value");
  }
  return *field;
}

std::string Component::string(std::string_view key) const {
  const auto field = value_->find(key);
  if (field == value_->end() || !field->is_string()) {
    fail_field(key, "a string");
  }
  return field->get<std::string>();
}

std::string Component::string(std::string_view key, std::string_view fallback) const {
  return has(key) ? string(key) : std::string(fallback);
}

bool Component::boolean(std::string_view key, bool fallback) const {
  if (!has(key)) {
    return fallback;
  }
  const auto field = value_->find(key);
  if (!field->is_boolean()) {
    fail_field(key, "true or false");
  }
  return field->get<bool>();
}

int64_t Component::integer(std::string_view key, int64_t low, int64_t high) const {
  const auto field = value_->find(key);
  const bool fits =
      field != value_->end() && field->is_number_integer() &&
      !(field->is_number_unsigned() && field->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) &&
      field->get<int64_t>() >= low && field->get<int64_t>() <= high;
  if (!fits) {
    fail_field(key, fmt::format("a whole number from {} to {}", low, high));
  }
  return field->get<int64_t>();
}

int64_t Component::integer(std::string_view key, int64_t low, int64_t high,
                           int64_t fallback) const {
  return has(key) ? integer(key, low, high) : fallback;
}

std::string Component::character(std::string_view key) const {
  std::string text = string(key);
  if (text.empty() || unicode::decode_at(text, 0).length != text.size()) {
    fail_field(key, "one character");
  }
  return text;
}

Component Component::object(std::string_view key) const {
  const auto field = value_->find(key);
  if (field == value_->end() || !field->is_object()) {
    fail_field(key, "an object");
  }
  return Component(*field, file_, child(key));
}

std::vector<Component> Component::objects(std::string_view key) const {
  std::vector<Component> result;
  if (!has(key)) {
    return result;
  }
  const auto field = value_->find(key);
  if (!field->is_array()) {
    fail_field(key, "an array");
  }
  for (const nlohmann::json& element : *field) {
    result.emplace_back(element, file_, fmt::format("{}[{}]", child(key), result.size()));
  }
  return result;
}

void Component::fail_unknown(std::string_view kind, std::string_view known) const {
  fail("{}: the {} \"{}\" is not known; known are {}", where(), kind, type(), known);
}

}  // namespace wick
