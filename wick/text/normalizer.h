// The normalizer of a tokenizer.json: text to text, before it is cut into words.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace wick {

class Component;

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Never called with the empty text, which every normalizer leaves as it is.
  virtual std::string apply(std::string_view text) const = 0;
  // True if `apply` would surely return the text as it is: spares the copy.
  virtual bool keeps(std::string_view) const { return false; }
  // True if the text's first characters would be stripped: what is left then no longer begins
  // where the input does.
  virtual bool drops_start(std::string_view) const { return false; }
};

std::unique_ptr<const Normalizer> parse_normalizer(const Component& component);

}  // namespace wick
