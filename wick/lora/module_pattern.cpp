// Module patterns by Oniguruma in Python's syntax.
#include "wick/lora/module_pattern.h"

#include <oniguruma.h>

#include <array>
#include <utility>

#include "wick/base/error.h"

namespace wick {

namespace {

const OnigUChar* bytes_of(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

}  // namespace

struct ModulePattern::Compiled {
  OnigRegex regex = nullptr;
  ~Compiled() { onig_free(regex); }
};

ModulePattern::ModulePattern(std::string_view expression, std::string where)
    : compiled_(std::make_unique<Compiled>()), where_(std::move(where)) {
  // \Z: the match must not end early, whichever alternative comes first.
  const std::string whole = "(?:" + std::string(expression) + ")\\Z";
  OnigErrorInfo info;
  const int status = onig_new(&compiled_->regex, bytes_of(whole), bytes_of(whole) + whole.size(),
                              ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_PYTHON, &info);
  if (status != ONIG_NORMAL) {
    std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> message{};
    onig_error_code_to_str(message.data(), status, &info);
    fail("{}: \"{}\" is no regular expression: {}", where_, expression,
         reinterpret_cast<const char*>(message.data()));
  }
}

ModulePattern::~ModulePattern() = default;
ModulePattern::ModulePattern(ModulePattern&&) noexcept = default;
ModulePattern& ModulePattern::operator=(ModulePattern&&) noexcept = default;

bool ModulePattern::matches(std::string_view module) const {
  const OnigUChar* begin = bytes_of(module);
  const OnigUChar* end = begin + module.size();
  const int status = onig_match(compiled_->regex, begin, end, begin, nullptr, ONIG_OPTION_NONE);
  check(status >= 0 || status == ONIG_MISMATCH,
        "{}: the regular expression takes too long to match \"{}\"; write a simpler one", where_,
        module);
  return status >= 0;
}

}  // namespace wick
