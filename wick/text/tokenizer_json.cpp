// A SAX reader that puts `model.vocab` and `model.merges` into flat tables and builds JSON values
// of everything else.
#include "wick/text/tokenizer_json.h"

#include <algorithm>

#include "wick/base/error.h"
#include "wick/base/file.h"

namespace wick {

namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxFileBytes = size_t{512} << 20;

// "path: byte 12 (line 3): ...", with the reason that nlohmann gives behind its own prefix.
std::string describe_syntax_error(const std::string& name, std::string_view text, size_t offset,
                                  std::string_view reason) {
  const size_t end = std::min(offset, text.size());
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(end), '\n');
  // "[json.exception.parse_error.101] parse error at line 1, column 3: syntax error while ..."
  if (const size_t cut = reason.find(": "); cut != std::string_view::npos) {
    reason.remove_prefix(cut + 2);
  }
  return fmt::format("{}: not valid JSON at byte {} (line {}): {}", name, end, line, reason);
}

class Reader final : public nlohmann::json_sax<json> {
 public:
  Reader(TokenizerJson& out, std::string_view text) : out_(out), text_(text) {}

  bool null() override { return value(json()); }
  bool boolean(bool v) override { return value(json(v)); }
  bool number_integer(number_integer_t v) override { return number(json(v), v); }
  bool number_unsigned(number_unsigned_t v) override {
    return number(json(v), v > static_cast<number_unsigned_t>(INT64_MAX) ? INT64_MAX
                                                                         : static_cast<int64_t>(v));
  }
  bool number_float(number_float_t v, const string_t&) override { return value(json(v)); }
  bool binary(binary_t&) override { return false; }

  bool string(string_t& text) override {
    if (where_ == Where::kMerges) {
      add_merge(text);
      return true;
    }
    if (where_ == Where::kMergePair) {
      pair_.push_back(std::move(text));
      return true;
    }
    return value(json(std::move(text)));
  }

  bool key(string_t& text) override {
    if (where_ == Where::kRest) {
      keys_.back() = std::move(text);
    } else {
      token_ = std::move(text);
    }
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == Where::kRest && at_model_field("vocab")) {
      where_ = Where::kVocab;
      return true;
    }
    return open(json::object());
  }
  bool end_object() override {
    if (where_ == Where::kVocab) {
      where_ = Where::kRest;
      return true;
    }
    return close();
  }
  bool start_array(size_t) override {
    if (where_ == Where::kMerges) {
      where_ = Where::kMergePair;
      pair_.clear();
      return true;
    }
    if (where_ == Where::kRest && at_model_field("merges")) {
      where_ = Where::kMerges;
      out_.has_merges = true;
      return true;
    }
    if (where_ == Where::kRest && at_model_field("vocab")) {
      where_ = Where::kVocabList;
      out_.vocab_is_list = true;
      return true;
    }
    return open(json::array());
  }
  bool end_array() override {
    if (where_ == Where::kMergePair) {
      check(pair_.size() == 2, "{}: model.merges[{}] must be two tokens, is {}", out_.path,
            out_.merges.size(), pair_.size());
      append_merge(pair_[0], pair_[1]);
      where_ = Where::kMerges;
      return true;
    }
    if (where_ == Where::kMerges) {
      where_ = Where::kRest;
      return true;
    }
    if (where_ == Where::kVocabList && list_depth_ == 0) {
      where_ = Where::kRest;
      return true;
    }
    return close();
  }

  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    throw Error(describe_syntax_error(out_.path, text_, position, error.what()));
  }

 private:
  enum class Where { kRest, kVocab, kVocabList, kMerges, kMergePair };

  bool at_model_field(std::string_view field) const {
    return stack_.size() == 2 && keys_[0] == "model" && keys_[1] == field;
  }

  bool number(json v, int64_t id) {
    if (where_ != Where::kVocab) {
      return value(std::move(v));
    }
    check(id >= 0 && id <= Vocabulary::kMaxId,
          "{}: model.vocab: the id of \"{}\" must be from 0 to {}, is {}", out_.path, token_,
          Vocabulary::kMaxId, v.dump());
    out_.vocabulary.add(token_, static_cast<int32_t>(id));
    return true;
  }

  bool value(json v) {
    check(where_ != Where::kVocab, "{}: model.vocab: the id of \"{}\" must be a number, is {}",
          out_.path, token_, v.type_name());
    check(where_ != Where::kMerges && where_ != Where::kMergePair,
          "{}: model.merges[{}] must be two tokens, holds a {}", out_.path, out_.merges.size(),
          v.type_name());
    if (where_ == Where::kRest) {
      place(std::move(v));
    }
    return true;
  }

  json* place(json v) {
    if (stack_.empty()) {
      out_.root = std::move(v);
      return &out_.root;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    json& slot = parent[keys_.back()];
    slot = std::move(v);
    return &slot;
  }

  bool open(json container) {
    if (where_ == Where::kVocabList) {
      ++list_depth_;
      return true;
    }
    check(where_ == Where::kRest, "{}: model.{} must not hold an {} here", out_.path,
          where_ == Where::kVocab ? "vocab" : "merges", container.type_name());
    check(stack_.size() < kMaxDepth, "{}: nested deeper than {} levels", out_.path, kMaxDepth);
    stack_.push_back(place(std::move(container)));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    if (where_ == Where::kVocabList) {
      --list_depth_;
      return true;
    }
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  // "left right": exactly one space.
  void add_merge(const std::string& text) {
    const size_t space = text.find(' ');
    check(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
          "{}: model.merges[{}] must be two tokens with one space between, is \"{}\"", out_.path,
          out_.merges.size(), text);
    const std::string_view view(text);
    append_merge(view.substr(0, space), view.substr(space + 1));
  }
  void append_merge(std::string_view left, std::string_view right) {
    out_.merges.entries.push_back({out_.merges.pool.size(), static_cast<uint32_t>(left.size()),
                                   static_cast<uint32_t>(right.size())});
    out_.merges.pool.append(left);
    out_.merges.pool.append(right);
  }

  TokenizerJson& out_;
  std::string_view text_;
  Where where_ = Where::kRest;
  // The open containers. A parent does not change while a child is open, so pointers stay good.
  std::vector<json*> stack_;
  std::vector<std::string> keys_;
  std::string token_;
  std::vector<std::string> pair_;
  size_t list_depth_ = 0;
};

}  // namespace

TokenizerJson parse_tokenizer_json(std::string_view text, std::string name) {
  TokenizerJson result;
  result.path = std::move(name);
  Reader reader(result, text);
  json::sax_parse(text.begin(), text.end(), &reader);
  check(result.root.is_object(), "{}: must hold an object, holds {}", result.path,
        result.root.type_name());
  if (result.root.contains("model")) {
    // The tables went elsewhere, so what is left under their names is of another type.
    const json& model = result.root["model"];
    for (const auto& [field, type] :
         {std::pair("vocab", "an object"), std::pair("merges", "an array")}) {
      if (const auto left = model.find(field); left != model.end() && !left->is_null()) {
        fail("{}: model.{} must be {}, is {}", result.path, field, type, left->type_name());
      }
    }
  }
  return result;
}

TokenizerJson read_tokenizer_json(const std::filesystem::path& path) {
  return parse_tokenizer_json(read_text(path, kMaxFileBytes), path.string());
}

json read_json(const std::filesystem::path& path) {
  const std::string text = read_text(path, kMaxFileBytes);
  // The reader of tokenizer.json also bounds the depth, and its errors say what ours should.
  return parse_tokenizer_json(text, path.string()).root;
}

}  // namespace wick
