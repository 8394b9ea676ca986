// Regular expressions over UTF-8, by Oniguruma: the engine and syntax of the reference tokenizers.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace wick {

// A stretch of a text that matched, or one between matches.
struct Stretch {
  size_t begin;
  size_t end;
  bool is_match;
};

// Immutable; may be searched from several threads at once.
class Regex {
 public:
  // `where` names the pattern's place in errors.
  Regex(std::string_view pattern, std::string where);

  // The first match that begins at or after `from`.
  std::optional<Stretch> find(std::string_view text, size_t from) const;

 private:
  // regex_t of Oniguruma, whose header stays out of this one.
  std::shared_ptr<const void> compiled_;
  std::string where_;
};

// What a `Split` or `Replace` looks for: a literal string or a regular expression.
class Pattern {
 public:
  static Pattern literal(std::string text);
  static Pattern regex(std::string_view pattern, std::string where);

  // Appends all of `text`, in order, as matches and the stretches between them. An empty match
  // counts unless it stands where the match before it ended.
  void split(std::string_view text, std::vector<Stretch>& out) const;
  // `text` with every match replaced by `content`.
  std::string replace(std::string_view text, std::string_view content) const;

 private:
  template <class OnMatch>
  void for_each_match(std::string_view text, OnMatch&& on_match) const;

  std::string literal_;
  std::optional<Regex> regex_;
};

class Component;
// Reads {"String": "..."} or {"Regex": "..."}, or a bare string, under `key`.
Pattern parse_pattern(const Component& component, std::string_view key);

}  // namespace wick
