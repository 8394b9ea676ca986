// A list of names for an error: the first few, and how many more.
#pragma once

#include <fmt/core.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace wick {

class NameList {
 public:
  void add(std::string_view name) {
    constexpr size_t kShown = 5;
    if (++count_ <= kShown) {
      text_ += (count_ == 1 ? "" : ", ") + std::string(name);
    } else {
      more_ = fmt::format(", and {} more", count_ - kShown);
    }
  }
  bool empty() const { return count_ == 0; }
  std::string text() const { return text_ + more_; }

 private:
  size_t count_ = 0;
  std::string text_;
  std::string more_;
};

}  // namespace wick
