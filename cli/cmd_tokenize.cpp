// wick tokenize: JSON lines of text to JSON lines of ids, and back.
#include <fmt/core.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/output.h"
#include "wick/base/error.h"
#include "wick/text/tokenizer.h"

namespace wick {

namespace {

using nlohmann::json;

constexpr const char* kExamples =
    "Examples:\n"
    "  echo '\"Hello world\"' | wick tokenize --model MODEL_FOLDER\n"
    "      {\"ids\":[9707,1879]}\n"
    "  echo '{\"ids\":[9707,1879]}' | wick tokenize --model MODEL_FOLDER --decode\n"
    "      {\"text\":\"Hello world\"}\n"
    "  wick tokenize --model MODEL_FOLDER --input train.jsonl --no-special > ids.jsonl\n"
    "\n"
    "A line holds a string or {\"text\": ...}; with --decode a list of ids or {\"ids\": ...}.\n";

struct TokenizeFlags {
  std::filesystem::path model;
  std::string input = "-";
  bool decode = false;
  bool no_special = false;
};

// The value itself, or its field, if it is of the type that `accepts`.
template <class Accepts>
const json& value_or_field(const json& line, const char* field, Accepts accepts,
                           const char* expected) {
  const json& value = line.is_object() && line.contains(field) ? line[field] : line;
  check(accepts(value), "{} is expected, is {}", expected,
        value.is_object() ? fmt::format("an object without \"{}\"", field) : value.type_name());
  return value;
}

json encode_line(const Tokenizer& tokenizer, const json& line, bool no_special) {
  const json& text = value_or_field(
      line, "text", [](const json& v) { return v.is_string(); }, "a string or {\"text\": \"...\"}");
  return {{"ids", tokenizer.encode(text.get_ref<const std::string&>(), !no_special)}};
}

json decode_line(const Tokenizer& tokenizer, const json& line, bool no_special) {
  const json& list = value_or_field(
      line, "ids", [](const json& v) { return v.is_array(); }, "a list of ids or {\"ids\": [...]}");
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    check(id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX,
          "ids[{}] must be a token id, is {}", ids.size(), id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return {{"text", tokenizer.decode(ids, no_special)}};
}

json parse_line(const std::string& line) {
  try {
    return json::parse(line);
  } catch (const json::parse_error& error) {
    // "[json.exception...] parse error at line 1, column 3: why": the column is the byte's.
    std::string_view reason = error.what();
    reason.remove_prefix(std::min(reason.size(), reason.find(": ") + 2));
    fail("not JSON at byte {}: {}", error.byte, reason);
  }
}

void tokenize(const TokenizeFlags& flags) {
  const Tokenizer tokenizer = Tokenizer::from_folder(flags.model);
  std::ifstream file;
  const bool from_file = flags.input != "-";
  if (from_file) {
    file.open(flags.input);
    check(file.good(), "{}: cannot open", flags.input);
  }
  std::istream& input = from_file ? file : std::cin;
  const std::string name = from_file ? flags.input : "standard input";
  size_t number = 0;
  for (std::string line; std::getline(input, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    json result;
    try {
      const json value = parse_line(line);
      result = flags.decode ? decode_line(tokenizer, value, flags.no_special)
                            : encode_line(tokenizer, value, flags.no_special);
    } catch (const Error& error) {
      fail("{}: line {}: {}", name, number, error.what());
    }
    print(result.dump() + '\n');
  }
  check(!input.bad(), "{}: reading failed behind line {}", name, number);
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* verb =
      app.add_subcommand("tokenize", "Turn JSON lines of text into token ids, or back");
  verb->add_option("--model", flags->model,
                   "Model folder: tokenizer.json (+ tokenizer_config.json)")
      ->required();
  verb->add_option("--input", flags->input, "JSON lines; -: standard input")->capture_default_str();
  verb->add_flag("--decode", flags->decode, "From ids to text");
  verb->add_flag("--no-special", flags->no_special,
                 "Do not frame the ids by special tokens; with --decode: leave them out");
  verb->footer(kExamples);
  verb->callback([flags] { tokenize(*flags); });
}

}  // namespace wick
