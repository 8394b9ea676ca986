// JSON lines by nlohmann-json; UTF-8 is checked first, so that its error is plain.
#include "wick/data/records.h"

#include <utf8proc.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "wick/base/error.h"

namespace wick {

namespace {

using Json = nlohmann::json;

constexpr std::string_view kForms =
    R"({"text"}, {"prompt", "completion"} or {"messages": [{"role", "content"}]})";

// The offset of the first byte that is not UTF-8; npos if all is well.
size_t find_bad_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    if (bytes[at] < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t code = 0;
    const auto rest = static_cast<utf8proc_ssize_t>(text.size() - at);
    const utf8proc_ssize_t length = utf8proc_iterate(bytes + at, rest, &code);
    if (length < 0) {
      return at;
    }
    at += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

std::string take_string(Json& object, const char* field, std::string_view where) {
  Json& value = object.at(field);
  check(value.is_string(), "{}: \"{}\" must be a string, it is: {}", where, field,
        value.type_name());
  return std::move(value.get_ref<std::string&>());
}

std::vector<Message> take_messages(Json& messages, std::string_view where) {
  check(messages.is_array() && !messages.empty(),
        "{}: \"messages\" must be a list of at least one message", where);
  std::vector<Message> result;
  for (Json& message : messages) {
    const std::string place = fmt::format("{}: message {}", where, result.size() + 1);
    check(message.is_object() && message.contains("role") && message.contains("content"),
          "{} must be an object with \"role\" and \"content\"", place);
    std::string role = take_string(message, "role", place);
    check(!role.empty() && role.find('\n') == std::string::npos,
          "{}: \"role\" must be one line that is not empty", place);
    result.push_back({std::move(role), take_string(message, "content", place)});
  }
  return result;
}

std::string fields_of(const Json& object) {
  std::string names;
  for (const auto& item : object.items()) {
    names += (names.empty() ? "\"" : ", \"") + item.key() + "\"";
  }
  return names.empty() ? "no field" : names;
}

}  // namespace

Record parse_record(std::string_view json, std::string_view where) {
  const size_t bad = find_bad_utf8(json);
  check(bad == std::string_view::npos, "{}: not UTF-8 at column {}", where, bad + 1);
  Json object;
  try {
    object = Json::parse(json);
  } catch (const Json::parse_error& error) {
    fail("{}: not JSON at column {} (one whole record a line is wanted)", where, error.byte);
  } catch (const Json::exception&) {
    fail("{}: holds a number that is out of range", where);
  }
  check(object.is_object(), "{}: a record must be a JSON object like {}, it is: {}", where, kForms,
        object.type_name());
  Record record;
  if (object.contains("messages")) {
    record.form = Record::Form::chat;
    record.messages = take_messages(object["messages"], where);
  } else if (object.contains("prompt") && object.contains("completion")) {
    record.form = Record::Form::completion;
    record.prompt = take_string(object, "prompt", where);
    record.completion = take_string(object, "completion", where);
  } else {
    check(object.contains("text"), "{}: a record must be {}; this one has {}", where, kForms,
          fields_of(object));
    record.text = take_string(object, "text", where);
  }
  return record;
}

RecordReader::RecordReader(const std::filesystem::path& file) : file_(file) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  const auto* text = reinterpret_cast<const char*>(file_.bytes().data());
  if (std::string_view(text, file_.bytes().size()).starts_with(kByteOrderMark)) {
    position_ = kByteOrderMark.size();
  }
}

std::optional<Record> RecordReader::next() {
  const std::string_view all(reinterpret_cast<const char*>(file_.bytes().data()),
                             file_.bytes().size());
  while (position_ < all.size()) {
    const size_t end = std::min(all.find('\n', position_), all.size());
    const std::string_view line = all.substr(position_, end - position_);
    position_ = std::min(end + 1, all.size());
    ++line_;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) {
      return parse_record(line, where());
    }
  }
  return std::nullopt;
}

std::string RecordReader::where() const {
  return fmt::format("{}:{}", file_.path().string(), line_);
}

int64_t Sample::target_tokens() const {
  return std::count(is_target.begin(), is_target.end(), uint8_t{1});
}

}  // namespace wick
