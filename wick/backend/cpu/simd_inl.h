// What the vector code of several kernels shares. Included once for each instruction set, inside
// the kernel files and after foreach_target.h, hence the toggling guard.

// clang-format off
#if defined(WICK_BACKEND_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_SIMD_INL_H_
#undef WICK_BACKEND_CPU_SIMD_INL_H_
#else
#define WICK_BACKEND_CPU_SIMD_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include <cstdint>

#include "wick/backend/cpu/narrow.h"

// Loops over registers must vanish, or the registers become memory.
#define WICK_UNROLL _Pragma("GCC unroll 16")

// Which sets have loads and stores that leave what is masked out alone.
#undef WICK_SIMD_MASKS
#undef WICK_SIMD_HALF_FLOATS
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
#define WICK_SIMD_MASKS 1
#else
#define WICK_SIMD_MASKS 0
#endif
#if WICK_SIMD_MASKS || HWY_TARGET == HWY_NEON
#define WICK_SIMD_HALF_FLOATS 1
#else
#define WICK_SIMD_HALF_FLOATS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
constexpr size_t kMaxLanes = HWY_MAX_BYTES / sizeof(float);

// ---- loads that widen to f32; any address that suits one element

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Bf16* from) {
  const hn::Rebind<uint16_t, D> narrow;
  const hn::RebindToUnsigned<D> wide;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const F16* from) {
#if WICK_SIMD_HALF_FLOATS
  const hn::Rebind<uint16_t, D> narrow;
  const hn::Rebind<hwy::float16_t, D> half;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
  return hn::PromoteTo(d, hn::BitCast(half, bits));
#else
  HWY_ALIGN float wide[kMaxLanes];
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    wide[i] = f16_to_f32(from[i].bits);
  }
  return hn::LoadU(d, wide);
#endif
}

// The first `count` elements (fewer than a vector); the rest is zero and not read.
template <class From>
HWY_INLINE VF load_part(DF d, const From* from, size_t count) {
  From whole[kMaxLanes] = {};
  for (size_t i = 0; i < count; ++i) {
    whole[i] = from[i];
  }
  return load(d, whole);
}

#if WICK_SIMD_MASKS
HWY_INLINE VF load_part(DF d, const float* from, size_t count) {
  return hn::MaskedLoad(hn::FirstN(d, count), d, from);
}
#endif

// ---- loads that wait for memory

// So many bytes ahead of a stream from memory its lines are asked for: with it a core reads 25 GB/s
// of products, with 256 or 1024 bytes the same or 1 less, with 2048 and more, or without, 17 to 22.
constexpr int64_t kStreamAhead = 512;

// Asks for the lines of `bytes` from an address on to be in the second cache. They need not exist.
HWY_INLINE void ask_ahead(uintptr_t from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(from + i), 0, 2);
  }
}

// ---- stores

HWY_INLINE void store(DF d, VF value, float* to) {
  hn::StoreU(value, d, to);
}

HWY_INLINE void store_part(DF d, VF value, float* to, size_t count) {
#if WICK_SIMD_MASKS
  hn::BlendedStore(value, hn::FirstN(d, count), d, to);
#else
  HWY_ALIGN float whole[kMaxLanes];
  hn::StoreU(value, d, whole);
  for (size_t i = 0; i < HWY_MIN(count, hn::Lanes(d)); ++i) {
    to[i] = whole[i];
  }
#endif
}

// ---- arithmetic

HWY_INLINE float sum_of(DF d, VF v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

HWY_INLINE float max_of(DF d, VF v) {
  return hn::GetLane(hn::MaxOfLanes(d, v));
}

// e^x to 2 ulp (Cephes, expf) for x <= 89. Below -87.3 it is 0; NaN stays NaN.
HWY_INLINE VF exp_bounded(DF d, VF x) {
  const hn::RebindToSigned<DF> integer;
  // Added to 1.5 * 2^23, a number is rounded to an integer, which is then in the lowest bits.
  const VF magic = hn::Set(d, 12582912.0F);
  const VF shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341F), magic);
  const VF whole = hn::Sub(shifted, magic);
  VF r = hn::NegMulAdd(whole, hn::Set(d, 0.693359375F), x);
  r = hn::NegMulAdd(whole, hn::Set(d, -2.12194440e-4F), r);
  VF p = hn::Set(d, 1.9875691500e-4F);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1F));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0F));
  const auto bits = hn::Add(hn::BitCast(integer, shifted), hn::Set(integer, 127));
  const VF y = hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(bits)));
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.3F)), hn::Zero(d), y);
}

// The same for all x: above 88.3 it is infinity.
HWY_INLINE VF exp(DF d, VF x) {
  const VF most = hn::Set(d, 89.0F);
  return exp_bounded(d, hn::IfThenElse(hn::Gt(x, most), most, x));  // Min may lose NaN
}

HWY_INLINE VF sigmoid(DF d, VF x) {
  const VF one = hn::Set(d, 1.0F);
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

// ---- loops over an array

// Calls body(offset, load function, store function) for each vector of [0, count). The functions
// move a whole vector, or in the last step what is left, between memory and a register.
template <class Body>
HWY_INLINE void for_vectors(int64_t count, const Body& body) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    body(
        i, [&](const auto* from) HWY_ATTR { return load(d, from + i); },
        [&](VF value, float* to) HWY_ATTR { store(d, value, to + i); });
  }
  if (i < count) {
    const size_t rest = count - i;
    body(
        i, [&](const auto* from) HWY_ATTR { return load_part(d, from + i, rest); },
        [&](VF value, float* to) HWY_ATTR { store_part(d, value, to + i, rest); });
  }
}

// The sum over [0, count) of the vectors that body(load function, sum so far) adds up, as four
// chains, since an addition must not wait for the one before it. `join` puts two sums together.
template <class Body, class Join>
HWY_INLINE VF fold(int64_t count, VF start, const Body& body, const Join& join) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto at = [&](int64_t i, VF sum) HWY_ATTR {
    return body([&](const auto* from) HWY_ATTR { return load(d, from + i); }, sum);
  };
  VF sum0 = start;
  VF sum1 = start;
  VF sum2 = start;
  VF sum3 = start;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = at(i, sum0);
    sum1 = at(i + lanes, sum1);
    sum2 = at(i + 2 * lanes, sum2);
    sum3 = at(i + 3 * lanes, sum3);
  }
  for (; i + lanes <= count; i += lanes) {
    sum0 = at(i, sum0);
  }
  if (i < count) {
    const size_t rest = count - i;
    const VF last =
        body([&](const auto* from) HWY_ATTR { return load_part(d, from + i, rest); }, sum1);
    sum1 = hn::IfThenElse(hn::FirstN(d, rest), last, sum1);
  }
  return join(join(sum0, sum1), join(sum2, sum3));
}

// The same for sums proper, down to one number.
template <class Body>
HWY_INLINE float sum_over(int64_t count, const Body& body) {
  const DF d;
  return sum_of(d,
                fold(count, hn::Zero(d), body, [](VF a, VF b) HWY_ATTR { return hn::Add(a, b); }));
}

// ---- transposes of 4x4 and 8x8 blocks; to[k][n] = from[n][k]

// The four-by-four blocks in the lanes of 128 bits of four rows, each transposed: out[j] has column
// j of the first block, then of the second.
template <class D, class V>
HWY_INLINE void transpose_lanes(D d, V r0, V r1, V r2, V r3, V* out) {
#if HWY_TARGET != HWY_SCALAR
  const hn::Repartition<uint64_t, D> pairs;
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  out[0] = hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23));
  out[2] = hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23));
#endif
}

// Copies `rows` x `columns` values; row n of `from` starts at n * from_stride, and likewise for
// `to`.
template <class From>
HWY_INLINE void transpose_by_four(const From* from, int64_t from_stride, int64_t rows,
                                  int64_t columns, float* to, int64_t to_stride) {
  int64_t n = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Full128<float> d;
  using V = hn::Vec<hn::Full128<float>>;
  for (; n + 4 <= rows; n += 4) {
    const From* block = from + n * from_stride;
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
      V out[4];
      transpose_lanes(d, load(d, block + k), load(d, block + from_stride + k),
                      load(d, block + 2 * from_stride + k), load(d, block + 3 * from_stride + k),
                      out);
      WICK_UNROLL for (int64_t j = 0; j < 4; ++j) {
        hn::StoreU(out[j], d, to + (k + j) * to_stride + n);
      }
    }
    for (; k < columns; ++k) {
      for (int64_t i = 0; i < 4; ++i) {
        to[k * to_stride + n + i] = to_f32(block[i * from_stride + k]);
      }
    }
  }
#endif
  for (; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      to[k * to_stride + n] = to_f32(from[n * from_stride + k]);
    }
  }
}

// The same; of eight by eight where there are such blocks, whose shuffles move twice as much. Up to
// 15 columns (a rank of 8) blocks of four were 1 % faster.
template <class From>
HWY_INLINE void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns,
                          float* to, int64_t to_stride) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::FixedTag<float, 8> d;
  using V = hn::Vec<hn::FixedTag<float, 8>>;
  const int64_t whole_rows = columns < 16 ? 0 : rows / 8 * 8;
  const int64_t whole_columns = columns / 8 * 8;
  for (int64_t n = 0; n < whole_rows; n += 8) {
    for (int64_t k = 0; k < whole_columns; k += 8) {
      V upper[4];
      V lower[4];
      const auto of_rows = [&](const From* block, V* out) HWY_ATTR {
        transpose_lanes(d, load(d, block), load(d, block + from_stride),
                        load(d, block + 2 * from_stride), load(d, block + 3 * from_stride), out);
      };
      of_rows(from + n * from_stride + k, upper);
      of_rows(from + (n + 4) * from_stride + k, lower);
      WICK_UNROLL for (int64_t j = 0; j < 4; ++j) {
        float* out = to + (k + j) * to_stride + n;
        hn::StoreU(hn::ConcatLowerLower(d, lower[j], upper[j]), d, out);
        hn::StoreU(hn::ConcatUpperUpper(d, lower[j], upper[j]), d, out + 4 * to_stride);
      }
    }
  }
  transpose_by_four(from + whole_columns, from_stride, whole_rows, columns - whole_columns,
                    to + whole_columns * to_stride, to_stride);
  transpose_by_four(from + whole_rows * from_stride, from_stride, rows - whole_rows, columns,
                    to + whole_rows, to_stride);
#else
  transpose_by_four(from, from_stride, rows, columns, to, to_stride);
#endif
}

// out[i] = the sum of the lanes of v[i].
HWY_INLINE void store_sums([[maybe_unused]] DF d, VF v0, VF v1, VF v2, VF v3, float* out) {
#if HWY_TARGET == HWY_SCALAR
  out[0] = hn::GetLane(v0);
  out[1] = hn::GetLane(v1);
  out[2] = hn::GetLane(v2);
  out[3] = hn::GetLane(v3);
#else
  const hn::Repartition<uint64_t, DF> pairs;
  const hn::Full128<float> quad;
  const auto sum01 =
      hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1)));
  const auto sum23 =
      hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3)));
  const VF sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, sum01, sum23)),
                          hn::BitCast(d, hn::InterleaveUpper(pairs, sum01, sum23)));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<DF> half;
  const auto halves = hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums));
  hn::StoreU(hn::Add(hn::LowerHalf(quad, halves), hn::UpperHalf(quad, halves)), quad, out);
#elif HWY_TARGET == HWY_AVX2
  hn::StoreU(hn::Add(hn::LowerHalf(quad, sums), hn::UpperHalf(quad, sums)), quad, out);
#else
  hn::StoreU(sums, quad, out);
#endif
#endif
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
