// JSON files from outside, parsed with bounds and clear errors.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace wick {

// The JSON object in `text`. Throws Error with `name` (the file) where it is not JSON (and at which
// byte), not an object, or nested more than 64 levels deep.
nlohmann::json parse_json_object(std::string_view text, const std::string& name);
// The same of a file of at most `max_bytes`.
nlohmann::json read_json_object(const std::filesystem::path& path,
                                size_t max_bytes = size_t{16} << 20);

// A value for a message: cut short, structures by kind only.
std::string shown_json(const nlohmann::json& value);

}  // namespace wick
