// Row-wise and element-wise kernels.
#include "wick/backend/cpu/rowwise.h"

#include <cmath>
#include <cstring>

#include "wick/base/random.h"

namespace wick::cpu {

namespace {

constexpr int64_t kTaskElements = 8192;

float load(const Tensor& x, int64_t i) {
  switch (x.dtype()) {
    case DType::bf16:
      return bf16_to_f32(x.data<uint16_t>()[i]);
    case DType::f16:
      return f16_to_f32(x.data<uint16_t>()[i]);
    default:
      return x.data<float>()[i];
  }
}

void store(const Tensor& x, int64_t i, float value) {
  switch (x.dtype()) {
    case DType::bf16:
      x.data<uint16_t>()[i] = f32_to_bf16(value);
      break;
    case DType::f16:
      x.data<uint16_t>()[i] = f32_to_f16(value);
      break;
    default:
      x.data<float>()[i] = value;
  }
}

struct Activated {
  float value, slope;
};

Activated activate(float x, Activation activation) {
  if (activation == Activation::silu) {
    const float gate = 1.0F / (1.0F + std::exp(-x));
    return {x * gate, gate * (1.0F + x * (1.0F - gate))};
  }
  const float inner = 0.7978845608F * (x + 0.044715F * x * x * x);
  const float slope = 0.7978845608F * (1.0F + 3 * 0.044715F * x * x);
  const float gate = 1.0F / (1.0F + std::exp(-2.0F * inner));
  return {x * gate, gate + x * gate * (1.0F - gate) * 2.0F * slope};
}

}  // namespace

void rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float eps,
              const Tensor& y, const Tensor& rstd) {
  const int64_t C = x.columns();
  for_ranges(context, x.rows(), rows_of(kTaskElements, C), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const float* x_row = x.data<float>() + t * C;
      float squares = 0;
      for (int64_t c = 0; c < C; ++c) {
        squares += x_row[c] * x_row[c];
      }
      const float scale = 1.0F / std::sqrt(squares / static_cast<float>(C) + eps);
      for (int64_t c = 0; c < C; ++c) {
        y.data<float>()[t * C + c] = x_row[c] * scale * load(weight, c);
      }
      if (rstd) {
        rstd.data<float>()[t] = scale;
      }
    }
  });
}

void rms_norm_backward(const Context& context, const RmsNormResults& forward, bool accumulate,
                       const Tensor& dx, const Tensor& dweight) {
  const int64_t T = forward.x.rows();
  const int64_t C = forward.x.columns();
  const float* x = forward.x.data<float>();
  const float* dy = forward.dy.data<float>();
  const float* rstd = forward.rstd.data<float>();
  if (dweight) {  // before dx, which may be dy
    for_ranges(context, C, 64, [&](int64_t c0, int64_t c1) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t c = c0; c < c1; ++c) {
          dweight.data<float>()[c] += dy[t * C + c] * x[t * C + c] * rstd[t];
        }
      }
    });
  }
  for_ranges(context, T, rows_of(kTaskElements, C), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const float scale = rstd[t];
      float mean = 0;
      for (int64_t c = 0; c < C; ++c) {
        mean += load(forward.weight, c) * dy[t * C + c] * x[t * C + c];
      }
      mean /= static_cast<float>(C);
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = t * C + c;
        const float gradient =
            scale * (load(forward.weight, c) * dy[i] - x[i] * scale * scale * mean);
        dx.data<float>()[i] = accumulate ? dx.data<float>()[i] + gradient : gradient;
      }
    }
  });
}

void gate(const Context& context, const Tensor& g, const Tensor& u, Activation activation,
          const Tensor& h) {
  for_ranges(context, g.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      h.data<float>()[i] = activate(g.data<float>()[i], activation).value * u.data<float>()[i];
    }
  });
}

void gate_backward(const Context& context, const Tensor& g, const Tensor& u, const Tensor& dh,
                   Activation activation, const Tensor& dg, const Tensor& du) {
  for_ranges(context, g.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Activated activated = activate(g.data<float>()[i], activation);
      const float d_h = dh.data<float>()[i];
      dg.data<float>()[i] = d_h * u.data<float>()[i] * activated.slope;
      du.data<float>()[i] = d_h * activated.value;
    }
  });
}

void add(const Context& context, const Tensor& a, const Tensor& b, const Tensor& y) {
  for_ranges(context, y.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      y.data<float>()[i] = a.data<float>()[i] + b.data<float>()[i];
    }
  });
}

void fill(const Context& context, float value, const Tensor& y) {
  for_ranges(context, y.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    std::fill(y.data<float>() + begin, y.data<float>() + end, value);
  });
}

void cast(const Context& context, const Tensor& x, const Tensor& y) {
  for_ranges(context, y.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      store(y, i, load(x, i));
    }
  });
}

void dropout(const Context& context, const Tensor& x, const DropoutArgs& args, const Tensor& y) {
  const Random random(args.seed, args.stream);
  const float scale = 1.0F / (1.0F - args.probability);
  for_ranges(context, y.elements(), kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bool keep = random.uniform(i) >= args.probability;
      y.data<float>()[i] = keep ? x.data<float>()[i] * scale : 0.0F;
    }
  });
}

void gather_rows(const Context& context, const Tensor& table, const Tensor& ids, const Tensor& y) {
  const int64_t C = table.columns();
  for_ranges(context, ids.elements(), rows_of(kTaskElements, C), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t from = ids.data<int32_t>()[t] * C;
      for (int64_t c = 0; c < C; ++c) {
        y.data<float>()[t * C + c] = load(table, from + c);
      }
    }
  });
}

void scatter_add_rows(const Context& context, const Tensor& x, const Tensor& ids,
                      const Tensor& table) {
  const int64_t T = ids.elements();
  const int64_t C = table.columns();
  for_ranges(context, C, 64, [&](int64_t c0, int64_t c1) {
    for (int64_t t = 0; t < T; ++t) {
      const int64_t to = ids.data<int32_t>()[t] * C;
      for (int64_t c = c0; c < c1; ++c) {
        table.data<float>()[to + c] += x.data<float>()[t * C + c];
      }
    }
  });
}

}  // namespace wick::cpu
