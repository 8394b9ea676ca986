// A regular expression over module paths, as PEFT uses them in its configs (Python's `re`).
//
// Matching is bounded: an expression that backtracks without end is an Error, not a hang. Errors
// name `where` the expression came from.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace wick {

class ModulePattern {
 public:
  ModulePattern(std::string_view expression, std::string where);
  ~ModulePattern();
  ModulePattern(ModulePattern&&) noexcept;
  ModulePattern& operator=(ModulePattern&&) noexcept;

  // The whole of `module` matches.
  bool matches(std::string_view module) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
  std::string where_;
};

}  // namespace wick
