// Row-wise and element-wise kernels: ranges of rows or elements are tasks.
#include "wick/backend/cpu/rowwise.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/rowwise.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "wick/backend/cpu/rowwise_inl.h"

#if HWY_ONCE

#include <cstring>

namespace wick::cpu {

HWY_EXPORT(Gate);
HWY_EXPORT(GateBackward);
HWY_EXPORT(Add);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(WidenF16);
HWY_EXPORT(NarrowToBf16);
HWY_EXPORT(NarrowToF16);
HWY_EXPORT(RandomWords);
HWY_EXPORT(ApplyDropout);

namespace {

// Overloads by the stored type, for with_elements.
void widen(const float* x, int64_t count, float* y) {
  std::memcpy(y, x, count * sizeof(float));
}
void widen(const Bf16* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(WidenBf16)(x, count, y);
}
void widen(const F16* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(WidenF16)(x, count, y);
}

void narrow(const float* x, int64_t count, float* y) {
  std::memcpy(y, x, count * sizeof(float));
}
void narrow(const float* x, int64_t count, Bf16* y) {
  HWY_DYNAMIC_DISPATCH(NarrowToBf16)(x, count, y);
}
void narrow(const float* x, int64_t count, F16* y) {
  HWY_DYNAMIC_DISPATCH(NarrowToF16)(x, count, y);
}

}  // namespace

void gate(const Context& context, const Tensor& g, const Tensor& u, Activation activation,
          const Tensor& h) {
  const bool gelu = activation == Activation::gelu_tanh;
  for_ranges(context, g.elements(), task_elements(g.elements()), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(Gate)
    (g.data<float>() + begin, u.data<float>() + begin, gelu, end - begin, h.data<float>() + begin);
  });
}

void gate_backward(const Context& context, const Tensor& g, const Tensor& u, const Tensor& dh,
                   Activation activation, const Tensor& dg, const Tensor& du) {
  const bool gelu = activation == Activation::gelu_tanh;
  for_ranges(context, g.elements(), task_elements(g.elements()), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(GateBackward)
    (g.data<float>() + begin, u.data<float>() + begin, dh.data<float>() + begin, gelu, end - begin,
     dg.data<float>() + begin, du.data<float>() + begin);
  });
}

void add(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y) {
  for_ranges(context, y.elements(), task_elements(y.elements()), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(Add)
    (a.data<float>() + begin, b.data<float>() + begin, end - begin, y.data<float>() + begin);
  });
}

// Mostly of gradients, before they are added up.
void fill(const Context& context, float value, const Tensor& y) {
  for_ranges(context, y.elements(), task_parameters(context, y.elements()),
             [&](int64_t begin, int64_t end) {
               std::fill(y.data<float>() + begin, y.data<float>() + end, value);
             });
}

void cast(const Context& context, const Tensor& x, const Tensor& y) {
  for_ranges(context, y.elements(), task_elements(y.elements()), [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    if (x.dtype() == y.dtype()) {
      const size_t size = size_of(x.dtype());
      std::memcpy(static_cast<std::byte*>(y.address()) + begin * size,
                  static_cast<const std::byte*>(x.address()) + begin * size, count * size);
    } else if (x.dtype() == DType::f32) {
      with_elements(y, [&](auto* to) { narrow(x.data<float>() + begin, count, to + begin); });
    } else if (y.dtype() == DType::f32) {
      with_elements(x, [&](auto* from) { widen(from + begin, count, y.data<float>() + begin); });
    } else {
      const Scratch wide(context.scratch, count);
      with_elements(x, [&](auto* from) { widen(from + begin, count, wide.data()); });
      with_elements(y, [&](auto* to) { narrow(wide.data(), count, to + begin); });
    }
  });
}

void dropout(const Context& context, const Tensor& x, const DropoutArgs& args, const Tensor& y) {
  const auto step = static_cast<uint64_t>(args.step.data<int32_t>()[0]);
  const uint64_t stream = mask_stream(args.seed, args.stream, step);
  for_ranges(context, y.elements(), task_elements(y.elements()), [&](int64_t begin, int64_t end) {
    constexpr int64_t kWords = 1024;
    static_assert(kElementsOfTask % kWords == 0 && kWords % 4 == 0);
    uint32_t words[kWords];
    for (int64_t first = begin; first < end; first += kWords) {
      const int64_t count = std::min(kWords, end - first);
      HWY_DYNAMIC_DISPATCH(RandomWords)
      (args.seed, stream, first / 4, (count + 3) / 4, words);
      HWY_DYNAMIC_DISPATCH(ApplyDropout)
      (x.data<float>() + first, words, args.probability, count, y.data<float>() + first);
    }
  });
}

void gather_rows(const Context& context, const Tensor& table, const Tensor& ids, const Tensor& y) {
  const int64_t C = table.columns();
  for_ranges(context, ids.elements(), rows_of(task_elements(y.elements()), C),
             [&](int64_t begin, int64_t end) {
               with_elements(table, [&](const auto* rows) {
                 for (int64_t t = begin; t < end; ++t) {
                   widen(rows + ids.data<int32_t>()[t] * C, C, y.data<float>() + t * C);
                 }
               });
             });
}

void scatter_add_rows(const Context& context, const Tensor& x, const Tensor& ids,
                      const Tensor& table) {
  const int64_t T = ids.elements();
  const int64_t C = table.columns();
  for_ranges(context, C, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < T; ++t) {
      float* sums = table.data<float>() + ids.data<int32_t>()[t] * C + begin;
      HWY_DYNAMIC_DISPATCH(Add)(sums, x.data<float>() + t * C + begin, end - begin, sums);
    }
  });
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
