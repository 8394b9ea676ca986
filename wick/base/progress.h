// A progress bar on the log's status line, and how amounts are shown to people.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace wick {

// "0:42", "12:03", "1:02:03".
std::string format_duration(double seconds);
// "812 bytes", "4.1 KB", "1.25 GB": decimal units.
std::string format_bytes(uint64_t bytes);
// "812", "13.4k", "2.51M".
std::string format_count(double count);

// "label [=====>    ] 52%  note  0:12 left"; `done` of `total` in any unit, in at most `columns`
// columns of a terminal. `rate` is in units a second; 0: not known yet, so no time left is shown.
struct ProgressView {
  std::string_view label;
  int64_t done = 0;
  int64_t total = 1;
  std::string_view note;
  double rate = 0;
};
std::string format_progress(const ProgressView& view, int columns);

// Draws at most ten times a second, and only once the work has taken `quiet_seconds`. Where there
// is no terminal it draws nothing. The destructor removes the bar.
class Progress {
 public:
  Progress(std::string label, int64_t total, double quiet_seconds = 2.0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done, std::string_view note = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_;
  double quiet_seconds_;
  int64_t first_ = -1;  // `done` of the first update, so that a resumed job has an honest rate
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_;
};

}  // namespace wick
