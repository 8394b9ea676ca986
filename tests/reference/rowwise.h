// Scalar twins of the row-wise kernels in core/backend.h.
#pragma once

#include <cstdint>

#include "tests/reference/number.h"
#include "wick/base/random.h"
#include "wick/core/kernel_args.h"

namespace wick::reference {

// rstd null: not wanted.
template <class Num>
void rms_norm(const Num* x, const Num* weight, float eps, int64_t T, int64_t C, Num* y, Num* rstd) {
  for (int64_t t = 0; t < T; ++t) {
    Num squares(0);
    for (int64_t c = 0; c < C; ++c) {
      squares += x[t * C + c] * x[t * C + c];
    }
    const Num scale = Num(1) / std::sqrt(squares / Num(C) + Num(eps));
    for (int64_t c = 0; c < C; ++c) {
      y[t * C + c] = x[t * C + c] * scale * weight[c];
    }
    if (rstd != nullptr) {
      rstd[t] = scale;
    }
  }
}

template <class Num>
struct RmsNormInputs {
  const Num *x, *weight, *rstd, *dy;
};

// dweight null: not wanted.
template <class Num>
void rms_norm_backward(const RmsNormInputs<Num>& in, bool accumulate, int64_t T, int64_t C, Num* dx,
                       Num* dweight) {
  for (int64_t t = 0; t < T; ++t) {
    const Num scale = in.rstd[t];
    Num mean(0);
    for (int64_t c = 0; c < C; ++c) {
      mean += in.weight[c] * in.dy[t * C + c] * in.x[t * C + c];
    }
    mean /= Num(C);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = t * C + c;
      const Num gradient = scale * (in.weight[c] * in.dy[i] - in.x[i] * scale * scale * mean);
      dx[i] = accumulate ? dx[i] + gradient : gradient;
      if (dweight != nullptr) {
        dweight[c] += in.dy[i] * in.x[i] * scale;
      }
    }
  }
}

// mean_rstd null: not wanted.
template <class Num>
void layer_norm(const Num* x, const Num* weight, const Num* bias, float eps, int64_t T, int64_t C,
                Num* y, Num* mean_rstd) {
  for (int64_t t = 0; t < T; ++t) {
    Num mean(0);
    for (int64_t c = 0; c < C; ++c) {
      mean += x[t * C + c];
    }
    mean /= Num(C);
    Num squares(0);
    for (int64_t c = 0; c < C; ++c) {
      squares += (x[t * C + c] - mean) * (x[t * C + c] - mean);
    }
    const Num rstd = Num(1) / std::sqrt(squares / Num(C) + Num(eps));
    for (int64_t c = 0; c < C; ++c) {
      y[t * C + c] = (x[t * C + c] - mean) * rstd * weight[c] + bias[c];
    }
    if (mean_rstd != nullptr) {
      mean_rstd[2 * t] = mean;
      mean_rstd[2 * t + 1] = rstd;
    }
  }
}

template <class Num>
struct LayerNormInputs {
  const Num *x, *weight, *mean_rstd, *dy;
};

template <class Num>
void layer_norm_backward(const LayerNormInputs<Num>& in, bool accumulate, int64_t T, int64_t C,
                         Num* dx, Num* dweight, Num* dbias) {
  for (int64_t t = 0; t < T; ++t) {
    const Num mean = in.mean_rstd[2 * t];
    const Num rstd = in.mean_rstd[2 * t + 1];
    Num straight(0);
    Num products(0);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = t * C + c;
      const Num normed = (in.x[i] - mean) * rstd;
      straight += in.weight[c] * in.dy[i];
      products += in.weight[c] * in.dy[i] * normed;
      dweight[c] += in.dy[i] * normed;
      dbias[c] += in.dy[i];
    }
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = t * C + c;
      const Num normed = (in.x[i] - mean) * rstd;
      const Num gradient =
          rstd * (in.weight[c] * in.dy[i] - straight / Num(C) - normed * products / Num(C));
      dx[i] = accumulate ? dx[i] + gradient : gradient;
    }
  }
}

// y may be x.
template <class Num>
void softmax(const Num* x, int64_t T, int64_t C, Num* y) {
  for (int64_t t = 0; t < T; ++t) {
    Num largest = x[t * C];
    for (int64_t c = 1; c < C; ++c) {
      largest = real_part(x[t * C + c]) > real_part(largest) ? x[t * C + c] : largest;
    }
    Num sum(0);
    for (int64_t c = 0; c < C; ++c) {
      y[t * C + c] = std::exp(x[t * C + c] - largest);
      sum += y[t * C + c];
    }
    for (int64_t c = 0; c < C; ++c) {
      y[t * C + c] /= sum;
    }
  }
}

template <class Num>
Num activate(const Num& x, Activation activation) {
  if (activation == Activation::silu) {
    return x * sigmoid(x);
  }
  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), and (1 + tanh u) / 2 = sigmoid(2u).
  const Num inner = Num(0.7978845608028654) * (x + Num(0.044715) * x * x * x);
  return x * sigmoid(Num(2) * inner);
}

template <class Num>
Num activate_slope(const Num& x, Activation activation) {
  if (activation == Activation::silu) {
    const Num gate = sigmoid(x);
    return gate * (Num(1) + x * (Num(1) - gate));
  }
  const Num inner = Num(0.7978845608028654) * (x + Num(0.044715) * x * x * x);
  const Num slope = Num(0.7978845608028654) * (Num(1) + Num(3 * 0.044715) * x * x);
  const Num gate = sigmoid(Num(2) * inner);
  return gate + x * gate * (Num(1) - gate) * Num(2) * slope;
}

template <class Num>
void gate(const Num* g, const Num* u, Activation activation, int64_t count, Num* h) {
  for (int64_t i = 0; i < count; ++i) {
    h[i] = activate(g[i], activation) * u[i];
  }
}

// dg may be g, and du may be u.
template <class Num>
void gate_backward(const Num* g, const Num* u, const Num* dh, Activation activation, int64_t count,
                   Num* dg, Num* du) {
  for (int64_t i = 0; i < count; ++i) {
    const Num value = activate(g[i], activation);
    const Num slope = activate_slope(g[i], activation);
    dg[i] = dh[i] * u[i] * slope;
    du[i] = dh[i] * value;
  }
}

template <class Num>
void add(const Num* a, const Num* b, int64_t count, Num* y) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = a[i] + b[i];
  }
}

template <class Num>
void dropout(const Num* x, const DropoutArgs& args, uint64_t step, int64_t count, Num* y) {
  const Random random(args.seed, mask_stream(args.seed, args.stream, step));
  const float scale = 1.0F / (1.0F - args.probability);
  for (int64_t i = 0; i < count; ++i) {
    y[i] = random.uniform(i) >= args.probability ? x[i] * Num(scale) : Num(0);
  }
}

template <class Num>
void gather_rows(const Num* table, const int32_t* ids, int64_t T, int64_t C, Num* y) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t c = 0; c < C; ++c) {
      y[t * C + c] = table[ids[t] * C + c];
    }
  }
}

template <class Num>
void scatter_add_rows(const Num* x, const int32_t* ids, int64_t T, int64_t C, Num* table) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t c = 0; c < C; ++c) {
      table[ids[t] * C + c] += x[t * C + c];
    }
  }
}

}  // namespace wick::reference
