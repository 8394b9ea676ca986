// Attention, its cache and the rotary embedding.
#include "wick/backend/cpu/attention.h"

#include <cmath>
#include <cstring>

namespace wick::cpu {

namespace {

struct Span {
  int64_t q_begin, q_count, k_begin, k_count;
};

Span span_at(const Tensor& spans, int64_t s) {
  const int32_t* row = spans.data<int32_t>() + 4 * s;
  return {row[0], row[1], row[2], row[3]};
}

struct KeyRange {
  int64_t begin, end;
};

KeyRange visible_keys(const Span& span, int64_t i, const AttentionArgs& args) {
  const int64_t position = span.k_count - span.q_count + i;
  return {args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0,
          args.causal ? position + 1 : span.k_count};
}

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

void add_scaled(float scale, const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] += scale * x[i];
  }
}

}  // namespace

void attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& spans, const AttentionArgs& args, const Tensor& o, const Tensor& lse) {
  const int64_t H = q.dim(1);
  const int64_t G = k.dim(1);
  const int64_t D = q.dim(2);
  context.pool.run(spans.rows() * H, [&](int64_t task) {
    const Span span = span_at(spans, task / H);
    const int64_t h = task % H;
    const int64_t g = h / (H / G);
    const Scratch scores(context.scratch, span.k_count);
    for (int64_t i = 0; i < span.q_count; ++i) {
      const int64_t row = (span.q_begin + i) * H + h;
      const KeyRange keys = visible_keys(span, i, args);
      float largest = -INFINITY;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        const float* key = k.data<float>() + ((span.k_begin + j) * G + g) * D;
        scores.data()[j] = args.scale * dot(q.data<float>() + row * D, key, D);
        largest = std::max(largest, scores.data()[j]);
      }
      float* out = o.data<float>() + row * D;
      std::fill_n(out, D, 0.0F);
      float sum = 0;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        const float weight = std::exp(scores.data()[j] - largest);
        sum += weight;
        add_scaled(weight, v.data<float>() + ((span.k_begin + j) * G + g) * D, D, out);
      }
      for (int64_t d = 0; d < D; ++d) {
        out[d] /= sum;
      }
      if (lse) {
        lse.data<float>()[row] = largest + std::log(sum);
      }
    }
  });
}

void attention_backward(const Context& context, const AttentionResults& forward,
                        const Tensor& spans, const AttentionArgs& args, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv) {
  const int64_t H = forward.q.dim(1);
  const int64_t G = forward.k.dim(1);
  const int64_t D = forward.q.dim(2);
  for (const Tensor* gradient : {&dq, &dk, &dv}) {
    std::fill_n(gradient->data<float>(), gradient->elements(), 0.0F);
  }
  context.pool.run(spans.rows() * G, [&](int64_t task) {
    const Span span = span_at(spans, task / G);
    const int64_t g = task % G;
    for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
      for (int64_t i = 0; i < span.q_count; ++i) {
        const int64_t row = (span.q_begin + i) * H + h;
        const float* q_row = forward.q.data<float>() + row * D;
        const float* d_o = forward.d_o.data<float>() + row * D;
        const float delta = dot(forward.o.data<float>() + row * D, d_o, D);
        const KeyRange keys = visible_keys(span, i, args);
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          const int64_t at = ((span.k_begin + j) * G + g) * D;
          const float* key = forward.k.data<float>() + at;
          const float score = args.scale * dot(q_row, key, D);
          const float p = std::exp(score - forward.lse.data<float>()[row]);
          const float dp = dot(d_o, forward.v.data<float>() + at, D);
          const float d_score = p * (dp - delta) * args.scale;
          add_scaled(d_score, key, D, dq.data<float>() + row * D);
          add_scaled(d_score, q_row, D, dk.data<float>() + at);
          add_scaled(p, d_o, D, dv.data<float>() + at);
        }
      }
    }
  });
}

void kv_append(const Tensor& x, const Tensor& slots, const Tensor& cache) {
  const int64_t row_bytes = x.columns() * x.dim(1) * static_cast<int64_t>(sizeof(float));
  for (int64_t t = 0; t < x.dim(0); ++t) {
    std::memcpy(static_cast<std::byte*>(cache.address()) + slots.data<int32_t>()[t] * row_bytes,
                static_cast<const std::byte*>(x.address()) + t * row_bytes, row_bytes);
  }
}

void rope(const Context& context, const Tensor& x, const Tensor& positions, const Tensor& table,
          RopeDirection direction, const Tensor& y) {
  const int64_t H = x.dim(1);
  const int64_t D = x.dim(2);
  const int64_t R = table.columns();
  const int64_t half = R / 2;
  const float sign = direction == RopeDirection::forward ? 1.0F : -1.0F;
  for_ranges(context, x.dim(0), rows_of(8192, H * D), [&](int64_t t0, int64_t t1) {
    for (int64_t row = t0 * H; row < t1 * H; ++row) {
      const float* cosines = table.data<float>() + positions.data<int32_t>()[row / H] * R;
      const float* from = x.data<float>() + row * D;
      float* to = y.data<float>() + row * D;
      for (int64_t i = 0; i < half; ++i) {
        const float first = from[i];
        const float second = from[half + i];
        const float sine = sign * cosines[half + i];
        to[i] = first * cosines[i] - second * sine;
        to[half + i] = second * cosines[i] + first * sine;
      }
      for (int64_t i = R; i < D; ++i) {
        to[i] = from[i];
      }
    }
  });
}

}  // namespace wick::cpu
