// The rotary embedding (Su et al., "RoFormer", 2021) and writes into the KV cache.
//
// Bound by memory: each element is read and written once, the table is read from the L2. A thread
// takes a run of kWide pairs (i, i + R/2) of one head, or kWide of the channels that do not rotate,
// so y may be x. Memory: none.
#include <initializer_list>
#include <type_traits>

#include "wick/backend/cuda/attention.h"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/lora.h"
#include "wick/backend/cuda/rope.cuh"

namespace wick::cuda {

namespace {

constexpr int kThreads = 256;

int blocks_for(int64_t work) {
  return static_cast<int>((work + kThreads - 1) / kThreads);
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const T* x, const int* positions, const float* table, float sign, int64_t heads,
                int H, HeadShape shape, T* y) {
  const int runs = shape.runs<kWide>();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t head = at / runs;
  if (head >= heads) {
    return;
  }
  const float* angles = table + static_cast<int64_t>(positions[head / H]) * shape.R;
  rotate_run<kWide>(x + head * shape.D, angles, sign, shape, static_cast<int>(at % runs),
                    y + head * shape.D);
}

template <class T>
struct AppendTensors {
  T* q;
  const T *k, *v;
  T *k_cache, *v_cache;
};

// Heads of a token: H of q, rotated in place; G of k, rotated into the cache; G of v, copied there
// by as many threads, each kWide elements at a time. Fewer than 2^32 threads in all.
template <int kWide, class T>
__global__ void __launch_bounds__(kThreads)
    rope_append_kernel(const int* positions, const float* table, int tokens, int H, int G,
                       HeadShape shape, AppendTensors<T> tensors) {
  // In 32 bits, whose divisions are short: a decode step waits for them in each layer.
  const auto runs = static_cast<uint32_t>(shape.runs<kWide>());
  const auto heads = static_cast<uint32_t>(H + 2 * G);
  const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  const auto run = static_cast<int>(at % runs);
  const int64_t t = at / runs / heads;
  auto h = static_cast<int>(at / runs % heads);
  let_next_start();
  const int64_t position = t < tokens ? positions[t] : 0;
  wait_for_previous();
  if (t >= tokens) {
    return;
  }
  const float* angles = table + position * shape.R;
  if (h < H) {
    T* q = tensors.q + (t * H + h) * shape.D;
    rotate_run<kWide>(q, angles, 1.0F, shape, run, q);
    return;
  }
  const bool rotates = h < H + G;
  h -= rotates ? H : H + G;
  const int64_t from = (t * G + h) * shape.D;
  const int64_t to = (position * G + h) * shape.D;
  if (rotates) {
    rotate_run<kWide>(tensors.k + from, angles, 1.0F, shape, run, tensors.k_cache + to);
    return;
  }
  for (int i = run * kWide; i < shape.D; i += static_cast<int>(runs) * kWide) {
    float values[kWide];
    load_run(tensors.v + from + i, values);
    store_run(values, tensors.v_cache + to + i);
  }
}

// Word is uint4 where rows and addresses allow it.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    kv_append_kernel(const Word* x, const int* slots, int64_t rows, int words, Word* cache) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = at / words;
  if (row < rows) {
    cache[static_cast<int64_t>(slots[row]) * words + at % words] = x[at];
  }
}

bool aligned(const Tensor& tensor, size_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.address()) % bytes == 0;
}

// Calls function with kWide.
template <class Function>
void with_width(const HeadShape& shape, std::initializer_list<const Tensor*> tensors,
                const Function& function) {
  bool wide = shape.D % 8 == 0 && shape.R % 16 == 0;
  for (const Tensor* tensor : tensors) {
    wide = wide && aligned(*tensor, 16);
  }
  if (wide) {
    function(std::integral_constant<int, 8>());
  } else {
    function(std::integral_constant<int, 1>());
  }
}

}  // namespace

void kv_append(const Context& context, const Tensor& x, const Tensor& slots, const Tensor& cache) {
  if (x.elements() == 0) {
    return;
  }
  const int64_t rows = x.dim(0);
  const auto row_bytes = static_cast<int64_t>(x.bytes()) / rows;
  const auto launch = [&](auto word) {
    using Word = decltype(word);
    const auto words = static_cast<int>(row_bytes / static_cast<int64_t>(sizeof(Word)));
    kv_append_kernel<Word><<<blocks_for(rows * words), kThreads, 0, context.stream>>>(
        static_cast<const Word*>(x.address()), slots.data<int32_t>(), rows, words,
        static_cast<Word*>(cache.address()));
  };
  if (row_bytes % 16 == 0 && aligned(x, 16) && aligned(cache, 16)) {
    launch(uint4());
  } else {
    launch(uint16_t());
  }
  check_launch("kv_append");
}

void rope(const Context& context, const Tensor& x, const Tensor& positions, const Tensor& table,
          RopeDirection direction, const Tensor& y) {
  if (x.elements() == 0) {
    return;
  }
  const HeadShape shape{static_cast<int>(x.dim(2)), static_cast<int>(table.columns())};
  const int64_t heads = x.dim(0) * x.dim(1);
  const float sign = direction == RopeDirection::forward ? 1.0F : -1.0F;
  with_activation(x, [&](auto* from) {
    with_width(shape, {&x, &table, &y}, [&](auto width) {
      constexpr int kWide = decltype(width)::value;
      rope_kernel<kWide><<<blocks_for(heads * shape.runs<kWide>()), kThreads, 0, context.stream>>>(
          from, positions.data<int32_t>(), table.data<float>(), sign, heads,
          static_cast<int>(x.dim(1)), shape, static_cast<decltype(from)>(y.address()));
    });
  });
  check_launch("rope");
}

void rope_append(const Context& context, const Tensor& positions, const Tensor& table,
                 const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache,
                 const Tensor& v_cache) {
  if (q.dim(0) == 0) {
    return;
  }
  const HeadShape shape{static_cast<int>(q.dim(2)), static_cast<int>(table.columns())};
  const auto tokens = static_cast<int>(q.dim(0));
  const auto H = static_cast<int>(q.dim(1));
  const auto G = static_cast<int>(k.dim(1));
  const int64_t heads = static_cast<int64_t>(tokens) * (H + 2 * G);
  with_activation(q, [&](auto* rotated) {
    using T = std::remove_pointer_t<decltype(rotated)>;
    const AppendTensors<T> tensors{rotated, k.data<T>(), v.data<T>(), k_cache.data<T>(),
                                   v_cache.data<T>()};
    with_width(shape, {&table, &q, &k, &v, &k_cache, &v_cache}, [&](auto width) {
      constexpr int kWide = decltype(width)::value;
      launch_early(context, tokens <= kFewRows, rope_append_kernel<kWide, T>,
                   blocks_for(heads * shape.runs<kWide>()), kThreads, 0, positions.data<int32_t>(),
                   table.data<float>(), tokens, H, G, shape, tensors);
    });
  });
  check_launch("rope_append");
}

}  // namespace wick::cuda
