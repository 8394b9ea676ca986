// Spaces to U+2581, and a cut before each.
#include "wick/text/metaspace.h"

#include "wick/base/error.h"
#include "wick/text/component.h"

namespace wick {

Metaspace parse_metaspace(const Component& component) {
  Metaspace options;
  options.replacement = component.has("replacement") ? component.character("replacement") : "▁";
  options.split = component.boolean("split", true);
  options.prepend = component.boolean("add_prefix_space", true) ? Metaspace::Prepend::kAlways
                                                                : Metaspace::Prepend::kNever;
  if (component.has("prepend_scheme")) {
    const std::string scheme = component.string("prepend_scheme");
    check(scheme == "always" || scheme == "first" || scheme == "never",
          "{}: the prepend_scheme \"{}\" is not known; known are always, first, never",
          component.where(), scheme);
    options.prepend = scheme == "always"  ? Metaspace::Prepend::kAlways
                      : scheme == "first" ? Metaspace::Prepend::kFirst
                                          : Metaspace::Prepend::kNever;
  }
  return options;
}

void MetaspaceSplit::apply(const Piece& piece, Pieces& out) const {
  const std::string& mark = options_.replacement;
  std::string text;
  text.reserve(piece.text.size() * 3 / 2 + mark.size());
  const bool wants_prefix = options_.prepend == Metaspace::Prepend::kAlways ||
                            (options_.prepend == Metaspace::Prepend::kFirst && piece.at_start);
  if (wants_prefix && !piece.text.starts_with(' ') && !piece.text.starts_with(mark)) {
    text += mark;
  }
  for (const char c : piece.text) {
    if (c == ' ') {
      text += mark;
    } else {
      text += c;
    }
  }
  const std::string_view all = out.own(std::move(text));
  if (!options_.split) {
    out.list.push_back({all, piece.at_start});
    return;
  }
  // A run of marks: each but the last is a word of its own, the last begins the next word.
  size_t begin = 0;
  while (begin < all.size()) {
    const size_t next = all.find(mark, begin + 1);
    const size_t end = next == std::string_view::npos ? all.size() : next;
    out.list.push_back({all.substr(begin, end - begin), piece.at_start && begin == 0});
    begin = end;
  }
}

}  // namespace wick
