// Shapes as arguments of messages: check(a == b, "add: shapes differ: {} and {}", a, b) makes their
// text only where the check fails. Apart from shape.h, so that kernel files need no fmt.
#pragma once

#include <fmt/core.h>

#include "wick/core/shape.h"

// As Shape::to_string; no options.
template <>
struct fmt::formatter<wick::Shape> {
  constexpr auto parse(format_parse_context& context) { return context.begin(); }
  fmt::appender format(const wick::Shape& shape, format_context& context) const;
};
