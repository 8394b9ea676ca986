// The wrapper of Oniguruma, and the rules by which the reference walks over matches.
#include "wick/text/regex.h"

#include <oniguruma.h>

#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/text/component.h"
#include "wick/text/unicode.h"

namespace wick {

namespace {

const OnigUChar* chars(std::string_view text, size_t offset = 0) {
  return reinterpret_cast<const OnigUChar*>(text.data()) + offset;
}

std::string describe(int code, OnigErrorInfo* info) {
  OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = onig_error_code_to_str(message, code, info);
  return std::string(reinterpret_cast<const char*>(message), static_cast<size_t>(length));
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string where) : where_(std::move(where)) {
  unicode::CharClasses::table();  // initialises Oniguruma
  regex_t* regex = nullptr;
  OnigErrorInfo info{};
  const int code = onig_new(&regex, chars(pattern), chars(pattern, pattern.size()),
                            ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
  check(code == ONIG_NORMAL, "{}: the regular expression \"{}\" does not compile: {}", where_,
        pattern, code == ONIG_NORMAL ? "" : describe(code, &info));
  compiled_ = std::shared_ptr<const void>(
      regex, [](const void* p) { onig_free(static_cast<regex_t*>(const_cast<void*>(p))); });
}

std::optional<Stretch> Regex::find(std::string_view text, size_t from) const {
  // The search does not write to the regex; its C signature lacks the const.
  auto* regex = static_cast<regex_t*>(const_cast<void*>(compiled_.get()));
  OnigRegion region{};
  const auto at = onig_search(regex, chars(text), chars(text, text.size()), chars(text, from),
                              chars(text, text.size()), &region, ONIG_OPTION_NONE);
  std::optional<Stretch> found;
  if (at >= 0) {
    found = Stretch{static_cast<size_t>(region.beg[0]), static_cast<size_t>(region.end[0]), true};
  }
  onig_region_free(&region, 0);
  // A pattern that backtracks without end stops at the library's retry limit.
  check(at >= 0 || at == ONIG_MISMATCH, "{}: matching failed at byte {} of {}: {}", where_, from,
        text.size(), at >= 0 ? "" : describe(static_cast<int>(at), nullptr));
  return found;
}

Pattern Pattern::literal(std::string text) {
  Pattern pattern;
  if (text.empty()) {
    pattern.regex_.emplace("", "the empty string");
  }
  pattern.literal_ = std::move(text);
  return pattern;
}

Pattern Pattern::regex(std::string_view source, std::string where) {
  Pattern pattern;
  pattern.regex_.emplace(source, std::move(where));
  return pattern;
}

template <class OnMatch>
void Pattern::for_each_match(std::string_view text, OnMatch&& on_match) const {
  if (!regex_) {
    for (size_t at = text.find(literal_); at != std::string_view::npos;
         at = text.find(literal_, at + literal_.size())) {
      on_match(at, at + literal_.size());
    }
    return;
  }
  size_t from = 0;
  std::optional<size_t> last_end;
  while (from <= text.size()) {
    const std::optional<Stretch> found = regex_->find(text, from);
    if (!found) {
      return;
    }
    if (found->begin == found->end && last_end == found->end) {
      from += from < text.size() ? unicode::decode_at(text, from).length : 1;
      continue;
    }
    from = found->end;
    last_end = found->end;
    on_match(found->begin, found->end);
  }
}

void Pattern::split(std::string_view text, std::vector<Stretch>& out) const {
  size_t previous = 0;
  for_each_match(text, [&](size_t begin, size_t end) {
    if (previous != begin) {
      out.push_back({previous, begin, false});
    }
    out.push_back({begin, end, true});
    previous = end;
  });
  if (previous != text.size()) {
    out.push_back({previous, text.size(), false});
  }
}

std::string Pattern::replace(std::string_view text, std::string_view content) const {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t previous = 0;
  for_each_match(text, [&](size_t begin, size_t end) {
    out.append(text, previous, begin - previous);
    out.append(content);
    previous = end;
  });
  out.append(text, previous);
  return out;
}

Pattern parse_pattern(const Component& component, std::string_view key) {
  if (component.raw(key).is_string()) {
    return Pattern::literal(component.string(key));
  }
  const Component pattern = component.object(key);
  if (pattern.has("String")) {
    return Pattern::literal(pattern.string("String"));
  }
  return Pattern::regex(pattern.string("Regex"), pattern.where());
}

}  // namespace wick
