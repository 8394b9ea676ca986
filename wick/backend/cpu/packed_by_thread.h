// One side of a product, packed anew by each thread that has a task.
#pragma once

#include <cstdint>

#include "wick/backend/cpu/context.h"

namespace wick::cpu {

// Values between what one thread writes and what another does. A core that goes through lines asks
// for the next ones too, up to the end of a page; those that another thread is writing would move
// to and fro.
constexpr int64_t kApart = 4096 / sizeof(float);

// For sides that one core packs faster than it fetches them from the core that has just packed
// them (0.1 against 0.3 ns a value). For one run.
class PackedByThread {
 public:
  // What tasks take along, by value: an object on the caller's stack is another line to fetch.
  class Places {
   public:
    // The values of that thread, which calls pack(values) in its first task.
    template <class Pack>
    const float* of(TaskThread thread, const Pack& pack) const {
      float* values = values_ + stride_ * thread.index;
      if (thread.first_task) {
        pack(values);
      }
      return values;
    }

   private:
    friend class PackedByThread;
    Places(float* values, int64_t stride) : values_(values), stride_(stride) {}

    float* values_;
    int64_t stride_;
  };

  PackedByThread(const Context& context, int64_t tasks, int64_t values)
      : stride_(values > 0 ? ceil_div(values, kFloatsOfLine) * kFloatsOfLine + kApart : 0),
        values_(context.scratch, stride_ * (tasks > 1 ? context.pool.threads() : 1)) {}

  Places places() const { return {values_.data(), stride_}; }

 private:
  int64_t stride_;
  Scratch values_;
};

}  // namespace wick::cpu
