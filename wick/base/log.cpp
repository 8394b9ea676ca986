// One lock, one sink, one status line.
#include "wick/base/log.h"

#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <string>

namespace wick {

namespace {

struct LogState {
  std::mutex mutex;
  LogLevel lowest = LogLevel::info;
  LogSink sink;
  std::string status;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
};

LogState& state() {
  static LogState only;
  return only;
}

std::string_view prefix(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return "debug: ";
    case LogLevel::warning:
      return "warning: ";
    case LogLevel::error:
      return "error: ";
    default:
      return "";
  }
}

constexpr std::string_view kClearLine = "\r\x1b[K";

void put(std::string_view text) {
  // Where the log cannot be written there is nowhere to say so.
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
}

}  // namespace

void set_log_level(LogLevel lowest) {
  LogState& s = state();
  const std::lock_guard lock(s.mutex);
  s.lowest = lowest;
}

LogSink set_log_sink(LogSink sink) {
  LogState& s = state();
  const std::lock_guard lock(s.mutex);
  std::swap(s.sink, sink);
  return sink;
}

void log_message(LogLevel level, std::string_view message) {
  LogState& s = state();
  const std::lock_guard lock(s.mutex);
  if (level < s.lowest) {
    return;
  }
  if (s.sink) {
    s.sink(level, message);
    return;
  }
  if (!s.status.empty()) {
    put(kClearLine);
  }
  put(prefix(level));
  put(message);
  put("\n");
  put(s.status);
  static_cast<void>(std::fflush(stderr));
}

bool has_status_line() {
  LogState& s = state();
  const std::lock_guard lock(s.mutex);
  return s.terminal && !s.sink && s.lowest <= LogLevel::info;
}

void set_status_line(std::string_view line) {
  if (!has_status_line()) {
    return;
  }
  LogState& s = state();
  const std::lock_guard lock(s.mutex);
  if (line.empty() && s.status.empty()) {
    return;
  }
  s.status = line;
  put(kClearLine);
  put(s.status);
  static_cast<void>(std::fflush(stderr));
}

}  // namespace wick
