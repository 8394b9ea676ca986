// What every CPU kernel is given beside its tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "wick/backend/cpu/memory.h"
#include "wick/base/parallel.h"
#include "wick/core/kernel_args.h"

namespace wick::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Context {
  ThreadPool& pool;
  BlockCache& scratch;  // for Scratch objects; tasks may take from it
  MatmulPrecision matmul_precision = MatmulPrecision::highest;
  bool bf16_products = false;  // has_bf16_products()
};

// Calls body(begin, end), or body(begin, end, thread), for the ranges of `grain` items that make up
// [0, count). The body is copied beside the sizes: what another thread reads of a run is then in
// one place, on few lines.
template <class Body>
void for_ranges(const Context& context, int64_t count, int64_t grain, const Body& body) {
  context.pool.run(ceil_div(count, grain), [count, grain, body](int64_t i, TaskThread thread) {
    const int64_t end = std::min(count, (i + 1) * grain);
    if constexpr (std::is_invocable_v<Body, int64_t, int64_t, TaskThread>) {
      body(i * grain, end, thread);
    } else {
      body(i * grain, end);
    }
  });
}

// As many rows as make a task of about `work` elements.
inline int64_t rows_of(int64_t work, int64_t columns) {
  return std::max<int64_t>(1, work / std::max<int64_t>(1, columns));
}

// Multiply-adds below which a second thread costs more than it saves.
constexpr int64_t kSerialProducts = 150'000;

// Elements of a task of an element-wise or row-wise kernel: all of them while a second thread would
// cost more than it saves.
constexpr int64_t kElementsOfTask = 16384;
inline int64_t task_elements(int64_t elements) {
  constexpr int64_t kSerialElements = 65536;
  return elements <= kSerialElements ? kSerialElements : kElementsOfTask;
}

// The same of parameters, their gradients and moments, which threads write in turn: few of them too
// are for several threads, since what one has written the others are to fetch anyway. Of few, a
// thread has one task: what it took of another's share would be fetched back in the next kernel.
inline int64_t task_parameters(const Context& context, int64_t elements) {
  constexpr int64_t kLeastElements = 2048;
  return elements <= 2 * kLeastElements ? std::max<int64_t>(elements, 1)
                                        : std::clamp(ceil_div(elements, context.pool.threads()),
                                                     kLeastElements, kElementsOfTask);
}

// Floats that are written again while they are still in the second caches of the cores that wrote
// and read them; more have left.
constexpr int64_t kMostShared = 65536;

// Of a line that one core has written and another read since, both keep a copy, and the next store
// waits for the other's to go: 12 ns among other loads and stores, 6-9 in a row, 3 in a row of a
// few bytes each. Where the other core has written it too, 1.6.
constexpr int64_t kFloatsOfLine = BlockCache::kAlignment / sizeof(float);

// For who will write x again: writes each line as it is.
inline void claim_lines(float* x, int64_t count) {
  volatile float* stored = x;  // so that what changes nothing is done
  for (int64_t i = 0; i < count; i += kFloatsOfLine) {
    stored[i] = stored[i];
  }
}

// For who has read scratch for the last time that another core will write again.
inline void take_lines(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kFloatsOfLine) {
    x[i] = 0.0F;  // without a load: 3 % less of the gradients [2, 16, 512] than as it is
  }
}

}  // namespace wick::cpu
