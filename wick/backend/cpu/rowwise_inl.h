// The inner loops of the row-wise and element-wise kernels.
// Included once for each instruction set, like simd_inl.h.

// clang-format off
#if defined(WICK_BACKEND_CPU_ROWWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WICK_BACKEND_CPU_ROWWISE_INL_H_
#undef WICK_BACKEND_CPU_ROWWISE_INL_H_
#else
#define WICK_BACKEND_CPU_ROWWISE_INL_H_
#endif
// clang-format on

#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"
#include "wick/base/random.h"

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

struct ActivatedVectors {
  VF value, slope;
};

// gelu's tanh form is x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
template <bool kGelu>
HWY_INLINE ActivatedVectors activate(DF d, VF x) {
  const VF one = hn::Set(d, 1.0F);
  if constexpr (!kGelu) {
    const VF gate = sigmoid(d, x);
    const VF value = hn::Mul(x, gate);
    return {value, hn::MulAdd(value, hn::Sub(one, gate), gate)};
  }
  const VF square = hn::Mul(x, x);
  const VF u2 = hn::Mul(hn::Mul(x, hn::Set(d, 2 * 0.7978845608F)),
                        hn::MulAdd(square, hn::Set(d, 0.044715F), one));
  const VF u2_slope =
      hn::Mul(hn::Set(d, 2 * 0.7978845608F), hn::MulAdd(square, hn::Set(d, 3 * 0.044715F), one));
  const VF gate = sigmoid(d, u2);
  const VF value = hn::Mul(x, gate);
  return {value, hn::MulAdd(hn::Mul(value, hn::Sub(one, gate)), u2_slope, gate)};
}

template <bool kGelu>
HWY_INLINE void gate_range(const float* g, const float* u, int64_t count, float* h) {
  const DF d;
  for_vectors(count, [&](int64_t, const auto& get, const auto& put)
                         HWY_ATTR { put(hn::Mul(activate<kGelu>(d, get(g)).value, get(u)), h); });
}

template <bool kGelu>
HWY_INLINE void gate_backward_range(const float* g, const float* u, const float* dh, int64_t count,
                                    float* dg, float* du) {
  const DF d;
  for_vectors(count, [&](int64_t, const auto& get, const auto& put) HWY_ATTR {
    const ActivatedVectors activated = activate<kGelu>(d, get(g));
    const VF d_h = get(dh);
    const VF d_g = hn::Mul(hn::Mul(d_h, get(u)), activated.slope);
    put(d_g, dg);  // u is read by now: du may be u
    put(hn::Mul(d_h, activated.value), du);
  });
}

void Gate(const float* g, const float* u, bool gelu, int64_t count, float* h) {
  gelu ? gate_range<true>(g, u, count, h) : gate_range<false>(g, u, count, h);
}

void GateBackward(const float* g, const float* u, const float* dh, bool gelu, int64_t count,
                  float* dg, float* du) {
  gelu ? gate_backward_range<true>(g, u, dh, count, dg, du)
       : gate_backward_range<false>(g, u, dh, count, dg, du);
}

void Add(const float* a, const float* b, int64_t count, float* y) {
  for_vectors(count, [&](int64_t, const auto& get, const auto& put)
                         HWY_ATTR { put(hn::Add(get(a), get(b)), y); });
}

void WidenBf16(const Bf16* x, int64_t count, float* y) {
  for_vectors(count, [&](int64_t, const auto& get, const auto& put) HWY_ATTR { put(get(x), y); });
}

void WidenF16(const F16* x, int64_t count, float* y) {
  for_vectors(count, [&](int64_t, const auto& get, const auto& put) HWY_ATTR { put(get(x), y); });
}

void NarrowToBf16(const float* x, int64_t count, Bf16* y) {
  const DF d;
  const hn::RebindToUnsigned<DF> d32;
  const hn::Rebind<uint16_t, DF> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const VF value = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(d32, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
    const auto even = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFF))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d32, 0x40));
    const auto is_nan = hn::RebindMask(d32, hn::IsNaN(value));
    const auto narrow = hn::TruncateTo(d16, hn::IfThenElse(is_nan, quiet, even));
    hn::StoreU(narrow, d16, reinterpret_cast<uint16_t*>(y + i));
  }
  for (; i < count; ++i) {
    y[i].bits = f32_to_bf16(x[i]);
  }
}

void NarrowToF16(const float* x, int64_t count, F16* y) {
  int64_t i = 0;
#if WICK_SIMD_MASKS  // F16C rounds to nearest even, subnormals included
  const DF d;
  const hn::Rebind<hwy::float16_t, DF> half;
  const hn::Rebind<uint16_t, DF> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (; i + lanes <= count; i += lanes) {
    const auto narrow = hn::DemoteTo(half, hn::LoadU(d, x + i));
    hn::StoreU(hn::BitCast(d16, narrow), d16, reinterpret_cast<uint16_t*>(y + i));
  }
#endif
  for (; i < count; ++i) {
    y[i].bits = f32_to_f16(x[i]);
  }
}

// The words of `blocks` Philox blocks from number `first` on, as Random::block gives them.
void RandomWords(uint64_t seed, uint64_t stream, uint64_t first, int64_t blocks, uint32_t* words) {
  int64_t block = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<uint32_t> d;
  const hn::Repartition<uint64_t, decltype(d)> wide;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  struct Product {
    V high, low;
  };
  const auto multiply = [&](V a, V b) HWY_ATTR {
    const auto even = hn::MulEven(a, b);
    const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), b);
    return Product{hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even))),
                   hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even))};
  };
  const bool one_high_word = (first >> 32) == ((first + blocks + lanes) >> 32);
  for (; one_high_word && block + lanes <= blocks; block += lanes) {
    const auto low = static_cast<uint32_t>(first + block);
    V c0 = hn::Iota(d, low);
    V c1 = hn::Set(d, static_cast<uint32_t>(first >> 32));
    V c2 = hn::Set(d, static_cast<uint32_t>(stream));
    V c3 = hn::Set(d, static_cast<uint32_t>(stream >> 32));
    auto key0 = static_cast<uint32_t>(seed);
    auto key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const Product p0 = multiply(c0, hn::Set(d, 0xD2511F53U));
      const Product p1 = multiply(c2, hn::Set(d, 0xCD9E8D57U));
      c0 = hn::Xor(hn::Xor(p1.high, c1), hn::Set(d, key0));
      c1 = p1.low;
      c2 = hn::Xor(hn::Xor(p0.high, c3), hn::Set(d, key1));
      c3 = p0.low;
      key0 += 0x9E3779B9U;
      key1 += 0xBB67AE85U;
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, words + 4 * block);
  }
#endif
  const Random random(seed, stream);
  for (; block < blocks; ++block) {
    for (uint64_t i = 0; i < 4; ++i) {
      words[4 * block + i] = random.bits(4 * (first + block) + i);
    }
  }
}

// Multiplies by the scale where the word of random bits reaches the threshold.
void ApplyDropout(const float* x, const uint32_t* words, float probability, int64_t count,
                  float* y) {
  const DF d;
  const hn::RebindToSigned<DF> integer;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF scale = hn::Set(d, 1.0F / (1.0F - probability));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto word = hn::BitCast(integer, hn::LoadU(hn::RebindToUnsigned<DF>(), words + i));
    const auto top = hn::And(hn::ShiftRight<8>(word), hn::Set(integer, 0xFFFFFF));
    const VF uniform = hn::Mul(hn::ConvertTo(d, top), hn::Set(d, 0x1p-24F));
    const auto keep = hn::Ge(uniform, hn::Set(d, probability));
    hn::StoreU(hn::IfThenElseZero(keep, hn::Mul(hn::LoadU(d, x + i), scale)), d, y + i);
  }
  for (; i < count; ++i) {
    const float uniform = static_cast<float>(words[i] >> 8) * 0x1p-24F;
    y[i] = uniform >= probability ? x[i] * (1.0F / (1.0F - probability)) : 0.0F;
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
