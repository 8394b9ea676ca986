// Scalar twins of the attention kernels in core/backend.h.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/reference/number.h"
#include "wick/core/kernel_args.h"

namespace wick::reference {

struct AttentionSize {
  int64_t H, G, D;  // query heads, key heads, head size
  int64_t spans;
};

// The keys that query i of a span {q_begin, q_count, k_begin, k_count} sees, as offsets from
// k_begin.
struct KeyRange {
  int64_t begin, end;
};

inline KeyRange visible_keys(const int32_t* span, int64_t i, const AttentionArgs& args) {
  const int64_t position = int64_t{span[3]} - span[1] + i;
  KeyRange range{0, span[3]};
  if (args.causal) {
    range.end = position + 1;
  }
  if (args.window > 0 && position - args.window + 1 > 0) {
    range.begin = position - args.window + 1;
  }
  return range;
}

// lse null: not wanted.
template <class Num>
void attention(const Num* q, const Num* k, const Num* v, const int32_t* spans,
               const AttentionArgs& args, const AttentionSize& size, Num* o, Num* lse) {
  const auto [H, G, D, S] = size;
  for (int64_t s = 0; s < S; ++s) {
    const int32_t* span = spans + 4 * s;
    for (int64_t i = 0; i < span[1]; ++i) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t row = (span[0] + i) * H + h;
        const int64_t g = h / (H / G);
        const KeyRange range = visible_keys(span, i, args);
        std::vector<Num> scores;
        double largest = -INFINITY;
        for (int64_t j = range.begin; j < range.end; ++j) {
          Num dot(0);
          for (int64_t d = 0; d < D; ++d) {
            dot += q[row * D + d] * k[((span[2] + j) * G + g) * D + d];
          }
          scores.push_back(dot * Num(args.scale));
          if (real_part(scores.back()) > largest) {
            largest = real_part(scores.back());
          }
        }
        Num sum(0);
        for (Num& score : scores) {
          score = std::exp(score - Num(largest));
          sum += score;
        }
        for (int64_t d = 0; d < D; ++d) {
          Num mean(0);
          for (int64_t j = range.begin; j < range.end; ++j) {
            mean += scores[j - range.begin] / sum * v[((span[2] + j) * G + g) * D + d];
          }
          o[row * D + d] = mean;
        }
        if (lse != nullptr) {
          lse[row] = std::log(sum) + Num(largest);
        }
      }
    }
  }
}

template <class Num>
struct AttentionInputs {
  const Num *q, *k, *v, *o, *lse, *d_o;
};

// dk and dv must be zero on entry; dq is overwritten.
template <class Num>
void attention_backward(const AttentionInputs<Num>& in, const int32_t* spans,
                        const AttentionArgs& args, const AttentionSize& size, Num* dq, Num* dk,
                        Num* dv) {
  const auto [H, G, D, S] = size;
  for (int64_t s = 0; s < S; ++s) {
    const int32_t* span = spans + 4 * s;
    for (int64_t i = 0; i < span[1]; ++i) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t row = (span[0] + i) * H + h;
        const int64_t g = h / (H / G);
        const KeyRange range = visible_keys(span, i, args);
        Num delta(0);
        for (int64_t d = 0; d < D; ++d) {
          dq[row * D + d] = Num(0);
          delta += in.o[row * D + d] * in.d_o[row * D + d];
        }
        for (int64_t j = range.begin; j < range.end; ++j) {
          const int64_t key = (span[2] + j) * G + g;
          Num score(0);
          Num dp(0);
          for (int64_t d = 0; d < D; ++d) {
            score += in.q[row * D + d] * in.k[key * D + d];
            dp += in.d_o[row * D + d] * in.v[key * D + d];
          }
          const Num p = std::exp(score * Num(args.scale) - in.lse[row]);
          const Num ds = p * (dp - delta) * Num(args.scale);
          for (int64_t d = 0; d < D; ++d) {
            dq[row * D + d] += ds * in.k[key * D + d];
            dk[key * D + d] += ds * in.q[row * D + d];
            dv[key * D + d] += p * in.d_o[row * D + d];
          }
        }
      }
    }
  }
}

struct RopeSize {
  int64_t T, H, D, R;
};

// table [P, R]: the cosines of R/2 angles, then their sines. x may be y.
template <class Num>
void rope(const Num* x, const int32_t* positions, const Num* table, RopeDirection direction,
          const RopeSize& size, Num* y) {
  const int64_t half = size.R / 2;
  for (int64_t t = 0; t < size.T; ++t) {
    const Num* cosines = table + positions[t] * size.R;
    for (int64_t h = 0; h < size.H; ++h) {
      const Num* from = x + (t * size.H + h) * size.D;
      Num* to = y + (t * size.H + h) * size.D;
      for (int64_t i = 0; i < half; ++i) {
        const Num cosine = cosines[i];
        const Num sine =
            direction == RopeDirection::forward ? cosines[half + i] : -cosines[half + i];
        const Num first = from[i];
        const Num second = from[half + i];
        to[i] = first * cosine - second * sine;
        to[half + i] = second * cosine + first * sine;
      }
      for (int64_t i = size.R; i < size.D; ++i) {
        to[i] = from[i];
      }
    }
  }
}

}  // namespace wick::reference
