// Bounded parsing on top of nlohmann-json.
#include "wick/io/json_file.h"

#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/base/file.h"

namespace wick {

namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxShownBytes = 60;

}  // namespace

nlohmann::json parse_json_object(std::string_view text, const std::string& name) {
  using Json = nlohmann::json;
  Json json;
  try {
    // Without a bound on depth a file of brackets grows a tree many times its size.
    json = Json::parse(text, [&](int depth, Json::parse_event_t, Json&) {
      check(depth <= kMaxDepth, "{}: nested more than {} levels deep", name, kMaxDepth);
      return true;
    });
  } catch (const Json::parse_error& error) {
    fail("{}: not JSON: error at byte {}", name, error.byte);
  } catch (const Json::exception&) {
    fail("{}: not JSON: a number is out of range", name);
  }
  check(json.is_object(), "{}: holds {}, not a JSON object", name, shown_json(json));
  return json;
}

nlohmann::json read_json_object(const std::filesystem::path& path, size_t max_bytes) {
  return parse_json_object(read_text(path, max_bytes), path.string());
}

std::string shown_json(const nlohmann::json& value) {
  if (value.is_structured()) {
    return value.is_array() ? "an array" : "an object";
  }
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShownBytes) {
    text.resize(kMaxShownBytes);
    text += "...";
  }
  return text;
}

}  // namespace wick
