// Messages to the person in front of the program: the only place where the library prints.
//
// Lines go to stderr, or to a sink that an embedding program sets. On a terminal one status line (a
// progress bar) may stand below the messages. All functions may be called from any thread. This
// is the one state of the library that is not passed around.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

namespace wick {

enum class LogLevel : uint8_t { debug, info, warning, error, silent };

// Takes the level and the message, without a line end.
using LogSink = std::function<void(LogLevel, std::string_view)>;

// Messages below `lowest` are dropped; info at the start.
void set_log_level(LogLevel lowest);
// Replaces stderr and returns what was there before; an empty sink stands for stderr.
LogSink set_log_sink(LogSink sink);
void log_message(LogLevel level, std::string_view message);

// Whether a status line is shown: messages go to stderr and that is a terminal.
bool has_status_line();
// Replaces the status line; an empty one removes it. Nothing happens where none is shown.
void set_status_line(std::string_view line);

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::debug, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace wick
