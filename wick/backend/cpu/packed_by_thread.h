// One side of a product, packed anew by each thread that has a task.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "wick/backend/cpu/context.h"

namespace wick::cpu {

// For sides that one core packs faster than it fetches them from the core that has just packed
// them (0.1 against 0.3 ns a value).
class PackedByThread {
 public:
  PackedByThread(const Context& context, int64_t tasks, int64_t values,
                 std::function<void(float*)> pack)
      : pack_(std::move(pack)),
        stride_(ceil_div(values, kLine) * kLine),
        done_(tasks > 1 ? context.pool.threads() : 1),
        values_(context.scratch, stride_ * done_.size()) {}

  // To be called by that thread.
  const float* of(int thread) {
    float* values = values_.data() + stride_ * thread;
    if (done_[thread] == 0) {
      pack_(values);
      done_[thread] = 1;
    }
    return values;
  }

 private:
  static constexpr int64_t kLine = BlockCache::kAlignment / sizeof(float);

  std::function<void(float*)> pack_;
  int64_t stride_;
  std::vector<char> done_;  // by thread
  Scratch values_;
};

}  // namespace wick::cpu
