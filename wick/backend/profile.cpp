// Totals, the table and the trace of a profile.
#include "wick/backend/profile.h"

#include <fmt/core.h>

#include <algorithm>

#include "wick/base/file.h"

namespace wick {

namespace {

using Seconds = std::chrono::duration<double>;
using NamedTotal = std::pair<std::string, Profile::Total>;

std::vector<NamedTotal> longest_first(std::vector<NamedTotal> rows) {
  std::stable_sort(rows.begin(), rows.end(), [](const NamedTotal& a, const NamedTotal& b) {
    return a.second.seconds > b.second.seconds;
  });
  return rows;
}

std::string rate(double amount, double seconds) {
  return amount > 0 && seconds > 0 ? fmt::format("{:.1f}", amount / seconds * 1e-9) : "-";
}

std::string line_of(const std::string& name, const Profile::Total& total, double wall) {
  const double share = wall > 0 ? 100 * total.seconds / wall : 0;
  return fmt::format("{:<44} {:>9} {:>11.3f} {:>6.1f} % {:>9} {:>8}\n", name, total.calls,
                     1e3 * total.seconds, share, rate(total.cost.flops, total.seconds),
                     rate(total.cost.bytes, total.seconds));
}

}  // namespace

void Profile::Total::add(double call_seconds, const KernelCost& call_cost) {
  ++calls;
  seconds += call_seconds;
  cost.flops += call_cost.flops;
  cost.bytes += call_cost.bytes;
}

void Profile::Total::add(const Total& other) {
  calls += other.calls;
  seconds += other.seconds;
  cost.flops += other.cost.flops;
  cost.bytes += other.cost.bytes;
}

void Profile::add(const std::string& kernel, const std::string& shape, Clock::time_point begin,
                  Clock::time_point end, const KernelCost& cost) {
  if (!recording_) {
    return;
  }
  if (rows_.empty()) {
    trace_begin_ = begin;
  }
  if (!in_section_) {
    section_begin_ = begin;
    in_section_ = true;
  }
  section_end_ = end;
  const auto row = rows_.try_emplace({kernel, shape}).first;
  row->second.add(Seconds(end - begin).count(), cost);
  if (events_.size() < kTraceEvents) {
    events_.push_back({&row->first, begin, end, cost.flops});
  }
}

void Profile::pause() {
  earlier_sections_ = wall_seconds();
  in_section_ = false;
  recording_ = false;
}

std::map<std::string, Profile::Total> Profile::totals() const {
  std::map<std::string, Total> kernels;
  for (const auto& [key, total] : rows_) {
    kernels[key.kernel].add(total);
  }
  return kernels;
}

double Profile::wall_seconds() const {
  return earlier_sections_ + (in_section_ ? Seconds(section_end_ - section_begin_).count() : 0.0);
}

std::string Profile::table() const {
  const double wall = wall_seconds();
  std::string text = fmt::format("{:<44} {:>9} {:>11} {:>8} {:>9} {:>8}\n", "kernel", "calls",
                                 "total ms", "share", "GF/s", "GB/s");
  const auto kernels = totals();
  double inside = 0;
  for (const auto& [kernel, total] : longest_first({kernels.begin(), kernels.end()})) {
    inside += total.seconds;
    text += line_of(kernel, total, wall);
    std::vector<NamedTotal> shapes;
    for (const auto& [key, part] : rows_) {
      if (key.kernel == kernel) {
        shapes.emplace_back("  " + key.shape, part);
      }
    }
    for (const auto& [shape, part] : longest_first(shapes)) {
      if (shapes.size() > 1) {
        text += line_of(shape, part, wall);
      }
    }
  }
  const double outside = std::max(0.0, wall - inside);
  return text + fmt::format("{:<44} {:>9} {:>11.3f} {:>6.1f} %\n", "(outside kernels)", "",
                            1e3 * outside, wall > 0 ? 100 * outside / wall : 0);
}

void Profile::write_trace(const std::filesystem::path& file) const {
  using Microseconds = std::chrono::duration<double, std::micro>;
  AtomicFile out(file);
  out.write("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [");
  std::string line;
  for (const Event& event : events_) {
    const double length = Microseconds(event.end - event.begin).count();
    line = fmt::format(
        "{}\n{{\"name\": \"{}\", \"ph\": \"X\", \"pid\": 1, \"tid\": 1, \"ts\": {:.3f}, \"dur\": "
        "{:.3f}, \"args\": {{\"shape\": \"{}\", \"flops\": {:.0f}}}}}",
        line.empty() ? "" : ",", event.key->kernel,
        Microseconds(event.begin - trace_begin_).count(), length, event.key->shape, event.flops);
    out.write(line);
  }
  out.write("\n]}\n");
  out.commit();
}

}  // namespace wick
