// Where the time goes: kernel calls added up by name and shape, and kept in order for a trace.
//
// One thread adds. The totals count every call; the trace keeps the first kTraceEvents, so that a
// long run does not fill the memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace wick {

// What a call has to do at least: each input read and each output written once.
struct KernelCost {
  double flops = 0;
  double bytes = 0;
};

class Profile {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kTraceEvents = 200'000;

  struct Total {
    int64_t calls = 0;
    double seconds = 0;
    KernelCost cost;

    void add(double call_seconds, const KernelCost& call_cost);
    void add(const Total& other);
  };

  // `shape` says what tells one call of the kernel from another: sizes and number types.
  void add(const std::string& kernel, const std::string& shape, Clock::time_point begin,
           Clock::time_point end, const KernelCost& cost);
  // While paused, calls do not count (reading a model, proving a result). A profile starts paused.
  void pause();
  void resume() { recording_ = true; }

  // Kernel -> its totals over all shapes.
  std::map<std::string, Total> totals() const;
  // Between `resume` and `pause`, from the begin of the first call to the end of the last.
  double wall_seconds() const;

  // A line a kernel, the longest first: calls, milliseconds, share of the wall time, GF/s, GB/s;
  // and under a kernel of several shapes a line a shape. The last line is the time outside kernels.
  std::string table() const;
  // The calls as chrome://tracing and Perfetto read them ("Trace Event Format").
  void write_trace(const std::filesystem::path& file) const;

 private:
  struct Key {
    std::string kernel;
    std::string shape;
    auto operator<=>(const Key&) const = default;
  };
  struct Event {
    const Key* key;  // of rows_, whose keys stay where they are
    Clock::time_point begin;
    Clock::time_point end;
    double flops;
  };

  std::map<Key, Total> rows_;
  std::vector<Event> events_;
  bool recording_ = false;
  bool in_section_ = false;      // a call was added since `resume`
  double earlier_sections_ = 0;  // seconds
  Clock::time_point trace_begin_;
  Clock::time_point section_begin_;
  Clock::time_point section_end_;
};

}  // namespace wick
