// Normal forms, case, accents, BERT's cleaning, and the replacements of SentencePiece models.
#include "wick/text/normalizer.h"

#include <nlohmann/json.hpp>

#include <map>
#include <vector>

#include "wick/text/component.h"
#include "wick/text/regex.h"
#include "wick/text/unicode.h"

namespace wick {

namespace {

template <class Keep>
std::string filter(std::string_view text, Keep keep) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const unicode::CodePoint c = unicode::decode_at(text, i);
    if (keep(c.value)) {
      out.append(text, i, c.length);
    }
    i += c.length;
  }
  return out;
}

class NormalForm : public Normalizer {
 public:
  explicit NormalForm(unicode::Form form) : form_(form) {}
  std::string apply(std::string_view text) const override {
    return unicode::normalize(text, form_);
  }
  bool keeps(std::string_view text) const override {
    return form_ == unicode::Form::kNfc ? unicode::is_surely_nfc(text) : unicode::is_ascii(text);
  }

 private:
  unicode::Form form_;
};

class Lowercase : public Normalizer {
 public:
  std::string apply(std::string_view text) const override { return unicode::to_lower(text); }
};

class StripAccents : public Normalizer {
 public:
  std::string apply(std::string_view text) const override {
    return filter(text, [](char32_t c) { return !unicode::is_mark(c); });
  }
  bool keeps(std::string_view text) const override { return unicode::is_ascii(text); }
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string apply(std::string_view text) const override { return prefix_ + std::string(text); }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string apply(std::string_view text) const override {
    return pattern_.replace(text, content_);
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::string apply(std::string_view text) const override {
    while (left_ && !text.empty() && unicode::is_space(unicode::decode_at(text, 0).value)) {
      text.remove_prefix(unicode::decode_at(text, 0).length);
    }
    while (right_ && !text.empty() &&
           unicode::is_space(unicode::decode_before(text, text.size()).value)) {
      text.remove_suffix(unicode::decode_before(text, text.size()).length);
    }
    return std::string(text);
  }
  bool drops_start(std::string_view text) const override {
    return left_ && !text.empty() && unicode::is_space(unicode::decode_at(text, 0).value);
  }

 private:
  bool left_;
  bool right_;
};

bool is_cjk_ideograph(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

// Cleaning, spaces around ideographs, accents, case: in this order.
class Bert : public Normalizer {
 public:
  struct Options {
    bool clean_text;
    bool space_cjk;
    bool strip_accents;
    bool lowercase;
  };
  explicit Bert(Options options) : options_(options) {}

  std::string apply(std::string_view text) const override {
    std::string result = clean(text);
    if (options_.strip_accents && !unicode::is_ascii(result)) {
      result = filter(unicode::normalize(result, unicode::Form::kNfd),
                      [](char32_t c) { return !unicode::is_nonspacing_mark(c); });
    }
    return options_.lowercase ? unicode::to_lower(result) : result;
  }
  bool drops_start(std::string_view text) const override {
    const char32_t first = text.empty() ? U' ' : unicode::decode_at(text, 0).value;
    return options_.clean_text && !is_white(first) && is_dropped(first);
  }

 private:
  std::string clean(std::string_view text) const {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const unicode::CodePoint c = unicode::decode_at(text, i);
      if (options_.clean_text && is_white(c.value)) {
        out.push_back(' ');
      } else if (options_.clean_text && is_dropped(c.value)) {
        // nothing
      } else if (options_.space_cjk && is_cjk_ideograph(c.value)) {
        out.push_back(' ');
        out.append(text, i, c.length);
        out.push_back(' ');
      } else {
        out.append(text, i, c.length);
      }
      i += c.length;
    }
    return out;
  }

  // Control characters that are white space (but for tab and line ends) are dropped.
  static bool is_white(char32_t c) {
    return c == '\t' || c == '\n' || c == '\r' || (unicode::is_space(c) && !unicode::is_control(c));
  }
  static bool is_dropped(char32_t c) { return c == 0xFFFD || unicode::is_control(c); }

  Options options_;
};

class Chain : public Normalizer {
 public:
  explicit Chain(std::vector<std::unique_ptr<const Normalizer>> steps) : steps_(std::move(steps)) {}
  std::string apply(std::string_view text) const override {
    std::string result(text);
    for (const auto& step : steps_) {
      advance(*step, result);
    }
    return result;
  }
  bool drops_start(std::string_view text) const override {
    std::string result(text.substr(0, kStart));
    result.resize(unicode::find_invalid_utf8(result));  // the cut may have split a character
    for (const auto& step : steps_) {
      if (step->drops_start(result)) {
        return true;
      }
      advance(*step, result);
    }
    return false;
  }
  bool keeps(std::string_view text) const override {
    for (const auto& step : steps_) {
      if (!step->keeps(text)) {
        return false;
      }
    }
    return true;
  }

 private:
  // Enough of a text to see its first character through all steps.
  static constexpr size_t kStart = 256;

  static void advance(const Normalizer& step, std::string& text) {
    if (!text.empty() && !step.keeps(text)) {
      text = step.apply(text);
    }
  }

  std::vector<std::unique_ptr<const Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<const Normalizer> parse_normalizer(const Component& component) {
  static const std::map<std::string, unicode::Form> kForms = {{"NFC", unicode::Form::kNfc},
                                                              {"NFD", unicode::Form::kNfd},
                                                              {"NFKC", unicode::Form::kNfkc},
                                                              {"NFKD", unicode::Form::kNfkd}};
  const std::string type = component.type();
  if (const auto form = kForms.find(type); form != kForms.end()) {
    return std::make_unique<NormalForm>(form->second);
  }
  if (type == "Lowercase") {
    return std::make_unique<Lowercase>();
  }
  if (type == "StripAccents") {
    return std::make_unique<StripAccents>();
  }
  if (type == "Prepend") {
    return std::make_unique<Prepend>(component.string("prepend"));
  }
  if (type == "Replace") {
    return std::make_unique<Replace>(parse_pattern(component, "pattern"),
                                     component.string("content"));
  }
  if (type == "Strip") {
    return std::make_unique<Strip>(component.boolean("strip_left", true),
                                   component.boolean("strip_right", true));
  }
  if (type == "BertNormalizer") {
    const bool lowercase = component.boolean("lowercase", true);
    return std::make_unique<Bert>(
        Bert::Options{.clean_text = component.boolean("clean_text", true),
                      .space_cjk = component.boolean("handle_chinese_chars", true),
                      .strip_accents = component.boolean("strip_accents", lowercase),
                      .lowercase = lowercase});
  }
  if (type == "Sequence") {
    std::vector<std::unique_ptr<const Normalizer>> steps;
    for (const Component& step : component.objects("normalizers")) {
      steps.push_back(parse_normalizer(step));
    }
    return std::make_unique<Chain>(std::move(steps));
  }
  component.fail_unknown("normalizer",
                         "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Prepend, Replace, Strip, "
                         "BertNormalizer, Sequence");
}

}  // namespace wick
