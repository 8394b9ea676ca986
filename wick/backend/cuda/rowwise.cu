// Element-wise kernels: a thread maps a run of eight elements, and walks on where there are many.
#include "wick/backend/cuda/rowwise.h"

#include "wick/backend/cuda/activate.cuh"
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/rows.cuh"

namespace wick::cuda {

namespace {

constexpr int kMapThreads = 128;
constexpr int64_t kMapBlocks = 4096;  // at most; more elements make the threads walk on

// Map::at<kWidth>(i) maps the elements [i, i + kWidth). With kRuns whole runs of eight are mapped
// at once, and the rest of the last run one by one by the thread it falls to.
template <bool kRuns, class Map>
__global__ void __launch_bounds__(kMapThreads) map_kernel(Map map, int64_t count) {
  wait_for_previous();
  if constexpr (Map::kLetsNextStart) {
    let_next_start();
  }
  map.begin();
  constexpr int kStep = kRuns ? 8 : 1;
  const int64_t stride = int64_t{gridDim.x} * kMapThreads * kStep;
  int64_t i = (int64_t{blockIdx.x} * kMapThreads + threadIdx.x) * kStep;
  for (; i + kStep <= count; i += stride) {
    map.template at<kStep>(i);
  }
  for (; kRuns && i < count; ++i) {
    map.template at<1>(i);
  }
}

// `addresses` are those of all tensors that Map reads or writes.
template <class Map>
void map_elements(const Context& context, const Map& map, int64_t count,
                  std::initializer_list<const void*> addresses, const char* name) {
  if (count == 0) {
    return;
  }
  const bool runs = in_runs(0, addresses);
  const int64_t blocks = ceil_div(count, kMapThreads * (runs ? 8 : 1));
  const auto grid = static_cast<unsigned>(std::min(blocks, kMapBlocks));
  const auto kernel = runs ? map_kernel<true, Map> : map_kernel<false, Map>;
  launch_early(context, true, kernel, grid, kMapThreads, 0, map, count);
  check_launch(name);
}

template <bool kGelu, class T>
struct GateMap {
  static constexpr bool kLetsNextStart = true;
  const T *g, *u;
  T* h;

  __device__ void begin() {}
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float gates[kWidth];
    float values[kWidth];
    load_run(g + i, gates);
    load_run(u + i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values[j] *= activate<kGelu>(gates[j]).value;
    }
    store_run(values, h + i);
  }
};

template <bool kGelu, class T>
struct GateBackwardMap {
  static constexpr bool kLetsNextStart = true;
  const T *g, *u, *dh;
  T *dg, *du;  // dg may be g, and du may be u

  __device__ void begin() {}
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float gates[kWidth];
    float values[kWidth];
    float gradients[kWidth];
    load_run(g + i, gates);
    load_run(u + i, values);
    load_run(dh + i, gradients);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const Activated activated = activate<kGelu>(gates[j]);
      gates[j] = gradients[j] * values[j] * activated.slope;
      values[j] = gradients[j] * activated.value;
    }
    store_run(gates, dg + i);
    store_run(values, du + i);
  }
};

template <class T>
struct AddMap {
  static constexpr bool kLetsNextStart = true;
  const T *a, *b;
  T* y;  // may be a or b

  __device__ void begin() {}
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float left[kWidth];
    float right[kWidth];
    load_run(a + i, left);
    load_run(b + i, right);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      left[j] += right[j];
    }
    store_run(left, y + i);
  }
};

template <class T>
struct FillMap {
  static constexpr bool kLetsNextStart = true;
  float value;
  T* y;

  __device__ void begin() {}
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float values[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values[j] = value;
    }
    store_run(values, y + i);
  }
};

template <class From, class To>
struct CastMap {
  static constexpr bool kLetsNextStart = false;  // it may make weights
  const From* x;
  To* y;

  __device__ void begin() {}
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float values[kWidth];
    load_run(x + i, values);
    store_run(values, y + i);
  }
};

// Block `index` of Random(seed, stream): Philox4x32-10, as in base/random.cpp.
__device__ __forceinline__ uint4 random_block(uint64_t seed, uint64_t stream, uint64_t index) {
  uint4 counter = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                   static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  auto key0 = static_cast<uint32_t>(seed);
  auto key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53U} * counter.x;
    const uint64_t product1 = uint64_t{0xCD9E8D57U} * counter.z;
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter.y ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter.w ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

template <class T>
struct DropoutMap {
  static constexpr bool kLetsNextStart = true;
  const T* x;
  float probability, scale;
  uint64_t seed, stream;
  const int32_t* step;
  T* y;  // may be x

  // The stream of this step's mask takes the place of the one that the steps share.
  __device__ void begin() {
    const uint4 words = random_block(seed, stream, static_cast<uint64_t>(int64_t{*step}));
    stream = words.x | uint64_t{words.y} << 32;
  }
  __device__ float dropped(float value, uint32_t word) const {
    const float uniform = static_cast<float>(word >> 8) * 0x1p-24F;
    return uniform >= probability ? value * scale : 0.0F;
  }
  template <int kWidth>
  __device__ void at(int64_t i) const {
    float values[kWidth];
    load_run(x + i, values);
    if constexpr (kWidth == 8) {
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        const uint4 words = random_block(seed, stream, static_cast<uint64_t>(i + j) / 4);
        values[j] = dropped(values[j], words.x);
        values[j + 1] = dropped(values[j + 1], words.y);
        values[j + 2] = dropped(values[j + 2], words.z);
        values[j + 3] = dropped(values[j + 3], words.w);
      }
    } else {
      const uint4 words = random_block(seed, stream, static_cast<uint64_t>(i) / 4);
      const auto place = static_cast<unsigned>(i) % 4;
      const uint32_t low = place == 0 ? words.x : words.y;
      values[0] = dropped(values[0], place < 2 ? low : place == 2 ? words.z : words.w);
    }
    store_run(values, y + i);
  }
};

}  // namespace

void gate(const Context& context, const Tensor& g, const Tensor& u, Activation activation,
          const Tensor& h) {
  with_activation(g, [&]<class T>(T* gates) {
    const auto* values = static_cast<const T*>(u.address());
    auto* to = static_cast<T*>(h.address());
    if (activation == Activation::gelu_tanh) {
      map_elements(context, GateMap<true, T>{gates, values, to}, h.elements(), {gates, values, to},
                   "gate");
    } else {
      map_elements(context, GateMap<false, T>{gates, values, to}, h.elements(), {gates, values, to},
                   "gate");
    }
  });
}

void gate_backward(const Context& context, const Tensor& g, const Tensor& u, const Tensor& dh,
                   Activation activation, const Tensor& dg, const Tensor& du) {
  with_activation(g, [&]<class T>(T* gates) {
    const auto run = [&]<bool kGelu>(std::bool_constant<kGelu>) {
      const GateBackwardMap<kGelu, T> map{
          gates, static_cast<const T*>(u.address()), static_cast<const T*>(dh.address()),
          static_cast<T*>(dg.address()), static_cast<T*>(du.address())};
      map_elements(context, map, g.elements(), {map.g, map.u, map.dh, map.dg, map.du},
                   "gate_backward");
    };
    if (activation == Activation::gelu_tanh) {
      run(std::true_type());
    } else {
      run(std::false_type());
    }
  });
}

void add(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y) {
  with_activation(y, [&]<class T>(T* to) {
    const AddMap<T> map{static_cast<const T*>(a.address()), static_cast<const T*>(b.address()), to};
    map_elements(context, map, y.elements(), {map.a, map.b, map.y}, "add");
  });
}

void fill(const Context& context, float value, const Tensor& y) {
  with_activation(y, [&]<class T>(T* to) {
    map_elements(context, FillMap<T>{value, to}, y.elements(), {to}, "fill");
  });
}

void cast(const Context& context, const Tensor& x, const Tensor& y) {
  if (y.elements() == 0) {
    return;
  }
  if (x.dtype() == y.dtype()) {
    check_cuda(cudaMemcpyAsync(y.address(), x.address(), y.bytes(), cudaMemcpyDeviceToDevice,
                               context.stream),
               "cast");
    return;
  }
  with_weight(x, [&]<class From>(From* from) {
    with_weight(y, [&]<class To>(To* to) {
      map_elements(context, CastMap<From, To>{from, to}, y.elements(), {from, to}, "cast");
    });
  });
}

void dropout(const Context& context, const Tensor& x, const DropoutArgs& args, const Tensor& y) {
  with_activation(x, [&]<class T>(T* from) {
    const DropoutMap<T> map{
        from,        args.probability,          1.0F / (1.0F - args.probability), args.seed,
        args.stream, args.step.data<int32_t>(), static_cast<T*>(y.address())};
    map_elements(context, map, y.elements(), {map.x, map.y}, "dropout");
  });
}

}  // namespace wick::cuda
