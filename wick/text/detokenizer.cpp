// The decoding steps.
#include "wick/text/detokenizer.h"

#include <array>
#include <optional>
#include <utility>

#include "wick/text/component.h"
#include "wick/text/metaspace.h"
#include "wick/text/pretokenizer.h"
#include "wick/text/regex.h"
#include "wick/text/unicode.h"

namespace wick {

namespace {

constexpr std::string_view kReplacement = "\uFFFD";

// A step that needs each token whole. Parts of a fused token are gathered until the end.
class WholeTokenStep : public DecodeStep {
 public:
  explicit WholeTokenStep(bool fused) : fused_(fused) {}

  void push(std::string_view token) final {
    if (fused_) {
      gathered_ += token;
    } else {
      on_token(token);
    }
  }
  void end() final {
    if (fused_) {
      on_token(std::exchange(gathered_, {}));
    }
    on_end();
    next().end();
  }

 protected:
  virtual void on_token(std::string_view token) = 0;
  virtual void on_end() {}

 private:
  bool fused_;
  std::string gathered_;
};

class Fuse : public DecodeStep {
 public:
  void push(std::string_view token) override { next().push(token); }
  void end() override { next().end(); }
};

class Join : public DecodeStep {
 public:
  void push(std::string_view token) override {
    next().push(first_ ? std::string(token) : ' ' + std::string(token));
    first_ = false;
  }
  void end() override {
    first_ = true;
    next().end();
  }

 private:
  bool first_ = true;
};

// Tokens in the byte alphabet to UTF-8; a token with other characters stands for its own bytes.
class ByteLevelDecode : public DecodeStep {
 public:
  void push(std::string_view token) override {
    const size_t before = bytes_.size();
    for (size_t i = 0; i < token.size();) {
      const unicode::CodePoint c = unicode::decode_at(token, i);
      const int byte = byte_of_character(c.value);
      if (byte < 0) {
        bytes_.resize(before);
        bytes_ += token;
        break;
      }
      bytes_.push_back(static_cast<char>(byte));
      i += c.length;
    }
    give(false);
  }
  void end() override {
    give(true);
    next().end();
  }

 private:
  void give(bool all) {
    std::string text;
    size_t i = 0;
    while (i < bytes_.size()) {
      const unicode::Sequence sequence = unicode::classify(bytes_, i);
      if (sequence.kind == unicode::Sequence::Kind::kIncomplete && !all) {
        break;
      }
      if (sequence.kind == unicode::Sequence::Kind::kCharacter) {
        text.append(bytes_, i, sequence.length);
      } else {
        text += kReplacement;
      }
      i += sequence.length;
    }
    bytes_.erase(0, i);
    next().push(text);
  }
  std::string bytes_;
};

// Runs of <0xXX> to UTF-8; a run that is not UTF-8 is one U+FFFD a byte, so it must be complete
// before anything is known of it.
class ByteFallbackDecode : public WholeTokenStep {
 public:
  using WholeTokenStep::WholeTokenStep;

 private:
  void on_token(std::string_view token) override {
    if (const std::optional<char> byte = parse_byte(token)) {
      bytes_.push_back(*byte);
      return;
    }
    on_end();
    next().push(token);
  }
  void on_end() override {
    if (bytes_.empty()) {
      return;
    }
    if (unicode::find_invalid_utf8(bytes_) == bytes_.size()) {
      next().push(bytes_);
    } else {
      for (size_t i = 0; i < bytes_.size(); ++i) {
        next().push(kReplacement);
      }
    }
    bytes_.clear();
  }

  static std::optional<char> parse_byte(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') {
      return std::nullopt;
    }
    int value = 0;
    for (const char c : token.substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                               : -1;
      if (digit < 0) {
        return std::nullopt;
      }
      value = value * 16 + digit;
    }
    return static_cast<char>(value);
  }

  std::string bytes_;
};

class MetaspaceDecode : public WholeTokenStep {
 public:
  MetaspaceDecode(bool fused, Metaspace options)
      : WholeTokenStep(fused), options_(std::move(options)) {}

 private:
  void on_token(std::string_view token) override {
    const bool drop = first_ && options_.prepend != Metaspace::Prepend::kNever;
    next().push(Pattern::literal(options_.replacement).replace(token, drop ? "" : " "));
    first_ = false;
  }
  void on_end() override { first_ = true; }

  Metaspace options_;
  bool first_ = true;
};

class WordPieceDecode : public WholeTokenStep {
 public:
  WordPieceDecode(bool fused, std::string prefix, bool cleanup)
      : WholeTokenStep(fused), prefix_(std::move(prefix)), cleanup_(cleanup) {}

 private:
  void on_token(std::string_view token) override {
    std::string text;
    if (first_) {
      text = token;
    } else if (token.starts_with(prefix_)) {
      text = token.substr(prefix_.size());
    } else {
      text = ' ' + std::string(token);
    }
    first_ = false;
    next().push(cleanup_ ? clean(std::move(text)) : text);
  }
  void on_end() override { first_ = true; }

  static std::string clean(std::string text) {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {{
        {" .", "."},
        {" ?", "?"},
        {" !", "!"},
        {" ,", ","},
        {" ' ", "'"},
        {" n't", "n't"},
        {" 'm", "'m"},
        {" do not", " don't"},
        {" 's", "'s"},
        {" 've", "'ve"},
        {" 're", "'re"},
    }};
    for (const auto& [from, to] : kRules) {
      for (size_t at = text.find(from); at != std::string::npos;
           at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
      }
    }
    return text;
  }

  std::string prefix_;
  bool cleanup_;
  bool first_ = true;
};

class ReplaceDecode : public WholeTokenStep {
 public:
  ReplaceDecode(bool fused, Pattern pattern, std::string content)
      : WholeTokenStep(fused), pattern_(std::move(pattern)), content_(std::move(content)) {}

 private:
  void on_token(std::string_view token) override { next().push(pattern_.replace(token, content_)); }

  Pattern pattern_;
  std::string content_;
};

// Takes up to `start` times the character off a token's head, and up to `stop` times off its tail.
class StripDecode : public DecodeStep {
 public:
  struct Options {
    std::string character;
    int64_t start;
    int64_t stop;
  };
  StripDecode(bool fused, Options options)
      : fused_(fused), options_(std::move(options)), left_(options_.start) {}

  void push(std::string_view token) override {
    while (left_ > 0 && token.starts_with(options_.character)) {
      token.remove_prefix(options_.character.size());
      --left_;
    }
    left_ = token.empty() ? left_ : 0;
    // The tail is held back: it may turn out to be the end.
    held_ += token;
    size_t given = held_.size();
    for (int64_t i = 0; i < options_.stop &&
                        std::string_view(held_).substr(0, given).ends_with(options_.character);
         ++i) {
      given -= options_.character.size();
    }
    next().push(std::string_view(held_).substr(0, given));
    held_.erase(0, given);
    if (!fused_) {
      reset();
    }
  }
  void end() override {
    reset();
    next().end();
  }

 private:
  void reset() {
    held_.clear();
    left_ = options_.start;
  }

  bool fused_;
  Options options_;
  int64_t left_;
  std::string held_;
};

class Collect : public DecodeStep {
 public:
  explicit Collect(std::string& text) : text_(text) {}
  void push(std::string_view token) override { text_ += token; }
  void end() override {}

 private:
  std::string& text_;
};

}  // namespace

DecodeRun::DecodeRun(std::vector<std::unique_ptr<DecodeStep>> steps)
    : steps_(std::move(steps)), text_(std::make_unique<std::string>()) {
  steps_.push_back(std::make_unique<Collect>(*text_));
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    steps_[i]->set_next(steps_[i + 1].get());
  }
}

std::string DecodeRun::take() {
  return std::exchange(*text_, {});
}

Detokenizer::Detokenizer() {
  steps_.emplace_back([] { return std::make_unique<Join>(); });
}

Detokenizer::Detokenizer(const Component& component) {
  bool fused = false;
  add(component, fused);
}

void Detokenizer::add(const Component& component, bool& fused) {
  const std::string type = component.type();
  if (type == "ByteLevel") {
    steps_.emplace_back([] { return std::make_unique<ByteLevelDecode>(); });
    fused = true;
  } else if (type == "ByteFallback") {
    steps_.emplace_back([fused] { return std::make_unique<ByteFallbackDecode>(fused); });
  } else if (type == "Fuse") {
    steps_.emplace_back([] { return std::make_unique<Fuse>(); });
    fused = true;
  } else if (type == "Metaspace") {
    steps_.emplace_back([fused, options = parse_metaspace(component)] {
      return std::make_unique<MetaspaceDecode>(fused, options);
    });
  } else if (type == "WordPiece") {
    steps_.emplace_back([fused, prefix = component.string("prefix", "##"),
                         cleanup = component.boolean("cleanup", true)] {
      return std::make_unique<WordPieceDecode>(fused, prefix, cleanup);
    });
  } else if (type == "Replace") {
    steps_.emplace_back([fused, pattern = parse_pattern(component, "pattern"),
                         content = component.string("content")] {
      return std::make_unique<ReplaceDecode>(fused, pattern, content);
    });
  } else if (type == "Strip") {
    const StripDecode::Options options{component.character("content"),
                                       component.integer("start", 0, 1 << 20, 0),
                                       component.integer("stop", 0, 1 << 20, 0)};
    steps_.emplace_back([fused, options] { return std::make_unique<StripDecode>(fused, options); });
  } else if (type == "Sequence") {
    for (const Component& step : component.objects("decoders")) {
      add(step, fused);
    }
  } else {
    component.fail_unknown("decoder",
                           "ByteLevel, ByteFallback, Fuse, Metaspace, WordPiece, Replace, Strip, "
                           "Sequence");
  }
}

DecodeRun Detokenizer::start() const {
  std::vector<std::unique_ptr<DecodeStep>> steps;
  steps.reserve(steps_.size() + 1);
  for (const MakeStep& make : steps_) {
    steps.push_back(make());
  }
  return DecodeRun(std::move(steps));
}

}  // namespace wick
