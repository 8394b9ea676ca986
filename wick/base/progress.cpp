// How the bar and the amounts look.
#include "wick/base/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "wick/base/log.h"

namespace wick {

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 3.6e9)));
  if (whole < 3600) {
    return fmt::format("{}:{:02}", whole / 60, whole % 60);
  }
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string format_bytes(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value < 1e3) {
    return fmt::format("{} bytes", bytes);
  }
  if (value < 1e6) {
    return fmt::format("{:.1f} KB", value / 1e3);
  }
  if (value < 1e9) {
    return fmt::format("{:.1f} MB", value / 1e6);
  }
  return fmt::format("{:.2f} GB", value / 1e9);
}

std::string format_count(double count) {
  if (count < 999.5) {
    return fmt::format("{:.0f}", count);
  }
  if (count < 999.5e3) {
    return fmt::format("{:.1f}k", count / 1e3);
  }
  return fmt::format("{:.2f}M", count / 1e6);
}

std::string format_progress(const ProgressView& view, int columns) {
  const int64_t total = std::max<int64_t>(view.total, 1);
  const int64_t done = std::clamp<int64_t>(view.done, 0, total);
  const double share = static_cast<double>(done) / static_cast<double>(total);
  std::string tail = fmt::format(" {:3}%", static_cast<int>(share * 100));
  if (!view.note.empty()) {
    tail += fmt::format("  {}", view.note);
  }
  if (view.rate > 0) {
    const double seconds = static_cast<double>(total - done) / view.rate;
    tail += fmt::format("  {} left", format_duration(seconds));
  }
  const int room = columns - static_cast<int>(view.label.size() + tail.size()) - 4;
  const int width = std::min(room, 30);
  if (width < 5) {
    return fmt::format("{}{}", view.label, tail).substr(0, std::max(columns - 1, 0));
  }
  const int filled = static_cast<int>(share * width);
  std::string bar(static_cast<size_t>(filled), '=');
  if (filled < width) {
    bar += '>';
    bar.append(static_cast<size_t>(width - filled - 1), ' ');
  }
  return fmt::format("{} [{}]{}", view.label, bar, tail);
}

namespace {

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(std::string label, int64_t total, double quiet_seconds)
    : label_(std::move(label)), total_(total), quiet_seconds_(quiet_seconds) {}

Progress::~Progress() {
  set_status_line({});
}

void Progress::update(int64_t done, std::string_view note) {
  const Clock::time_point now = Clock::now();
  if (first_ < 0) {
    first_ = done;
    start_ = now;
  }
  const double seconds = std::chrono::duration<double>(now - start_).count();
  if (seconds < quiet_seconds_ || now - last_drawn_ < std::chrono::milliseconds(100) ||
      !has_status_line()) {
    return;
  }
  last_drawn_ = now;
  const double rate = seconds > 0 ? static_cast<double>(done - first_) / seconds : 0;
  set_status_line(format_progress({label_, done, total_, note, rate}, terminal_columns()));
}

}  // namespace wick
