// What the backward kernels of attention need of each row: see RowStatistics.
//
// Bound by the reads of o and d_o. Memory: none but the results.
#include <type_traits>

#include "wick/backend/cuda/attention_call.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

constexpr int kLanesOfHead = 8;
constexpr int kStatisticsThreads = 256;

// Eight lanes take a row of a head.
template <class T, bool chunked>
__global__ void __launch_bounds__(kStatisticsThreads)
    row_statistics(const AttentionCall call, const T* o, const T* d_o, const float* lse,
                   RowStatistics statistics) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStatisticsThreads + threadIdx.x;
  const int64_t head = at / kLanesOfHead;  // of [Tq,H]
  const int lane = static_cast<int>(at % kLanesOfHead);
  const bool exists = head < static_cast<int64_t>(call.Tq) * call.H;
  float delta = 0.0F;
  const int64_t first = head * call.D;
  if (exists && chunked) {
    for (int i = lane * 8; i < call.D; i += kLanesOfHead * 8) {
      float a[8];
      float b[8];
      load8(o + first + i, a);
      load8(d_o + first + i, b);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        delta += a[j] * b[j];
      }
    }
  } else if (exists) {
    for (int i = lane; i < call.D; i += kLanesOfHead) {
      delta += to_float(o[first + i]) * to_float(d_o[first + i]);
    }
  }
#pragma unroll
  for (int step = 1; step < kLanesOfHead; step *= 2) {
    delta += __shfl_xor_sync(~0U, delta, step);
  }
  if (!exists || lane != 0) {
    return;
  }
  const auto row = static_cast<int>(head / call.H);
  const auto h = static_cast<int>(head % call.H);
  const float log2_sum = lse[head] * kLog2E;
  // A row without keys has no softmax; its mask leaves nothing of it.
  statistics.of_heads[static_cast<int64_t>(h) * call.Tq + row] = {
      log2_sum == -INFINITY ? 0.0F : log2_sum, delta};
  if (h == 0) {
    statistics.keys[row] = visible_keys(call, row);
  }
}

}  // namespace

void find_statistics(const Context& context, const AttentionResults& forward,
                     const AttentionCall& call, const RowStatistics& statistics) {
  const int64_t lanes = static_cast<int64_t>(call.Tq) * call.H * kLanesOfHead;
  if (lanes == 0) {
    return;
  }
  const int blocks = divide_up(lanes, kStatisticsThreads);
  const float* lse = forward.lse.data<float>();
  with_activation(forward.o, [&](auto* o) {
    const auto* d_o = static_cast<decltype(o)>(forward.d_o.address());
    const DType type = forward.o.dtype();
    if (call.D % 8 == 0 && in_chunks(forward.o, type) && in_chunks(forward.d_o, type)) {
      row_statistics<std::remove_pointer_t<decltype(o)>, true>
          <<<blocks, kStatisticsThreads, 0, context.stream>>>(call, o, d_o, lse, statistics);
    } else {
      row_statistics<std::remove_pointer_t<decltype(o)>, false>
          <<<blocks, kStatisticsThreads, 0, context.stream>>>(call, o, d_o, lse, statistics);
    }
  });
  check_launch("attention_backward");
}

}  // namespace wick::cuda
