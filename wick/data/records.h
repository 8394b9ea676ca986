// Training records: one JSON object a line, in one of three forms.
//
//   {"text": "..."}                                   every token is learnt
//   {"prompt": "...", "completion": "..."}            the completion is learnt
//   {"messages": [{"role": "...", "content": "..."}]} what the role "assistant" says is learnt
//
// Other fields are ignored; blank lines and a byte order mark too. Errors name the file and the
// line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wick/base/file.h"

namespace wick {

struct Message {
  std::string role;
  std::string content;
};

struct Record {
  enum class Form : uint8_t { text, completion, chat };
  Form form = Form::text;
  std::string text;
  std::string prompt;
  std::string completion;
  std::vector<Message> messages;
};

// `where` ("train.jsonl:12") begins every error message.
Record parse_record(std::string_view json, std::string_view where);

// Reads a file record by record, by memory map.
class RecordReader {
 public:
  explicit RecordReader(const std::filesystem::path& file);

  std::optional<Record> next();
  // "path:line" of the record that `next` gave last.
  std::string where() const;
  int64_t bytes_read() const { return static_cast<int64_t>(position_); }
  int64_t bytes_total() const { return static_cast<int64_t>(file_.bytes().size()); }

 private:
  MappedFile file_;
  size_t position_ = 0;
  int64_t line_ = 0;
};

// A record as tokens. Token i is to be predicted from those before it if is_target[i]; the first
// token never is.
struct Sample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> is_target;  // as long as ids

  int64_t target_tokens() const;
};

}  // namespace wick
