// Checks once, then one kernel a direction.
#include "wick/ops/attention.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"

namespace wick {

Var rope(Backend& backend, Tape* tape, Var x, const RopeInputs& inputs) {
  const Tensor& positions = inputs.positions;
  const Tensor& table = inputs.table;
  check(x.value.shape().rank() == 3, "rope: input {} must have three dimensions", x.value.shape());
  check(positions.elements() == x.value.dim(0), "rope: {} positions for {} tokens",
        positions.elements(), x.value.dim(0));
  check(table.columns() <= x.value.columns() && table.columns() % 2 == 0,
        "rope: a table of {} columns does not fit heads of {}", table.columns(), x.value.columns());
  Tensor y = x.value;
  x.value = Tensor();
  if (!y.sole_owner()) {
    const Tensor source = y;
    y = backend.allocate(source.shape(), source.dtype());
    backend.rope(source, positions, table, RopeDirection::forward, y);
  } else {
    backend.rope(y, positions, table, RopeDirection::forward, y);
  }
  if (!x.needs_gradient()) {
    return {std::move(y)};
  }
  return tape->record(
      std::move(y), [&backend, tape, to = x.without_value(), positions, table](Tensor gradient) {
        const Tensor dx =
            gradient.sole_owner() ? gradient : backend.allocate(gradient.shape(), gradient.dtype());
        backend.rope(gradient, positions, table, RopeDirection::inverse, dx);
        gradient = Tensor();
        tape->give(to, dx);
      });
}

namespace {

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& spans) {
  const Shape& qs = q.shape();
  const Shape& ks = k.shape();
  check(qs.rank() == 3 && ks.rank() == 3 && ks[1] > 0 && qs[1] % ks[1] == 0 && qs[2] == ks[2],
        "attention: queries {} do not fit keys {}", qs, ks);
  check(v.shape() == ks, "attention: values {} do not fit keys {}", v.shape(), ks);
  check(spans.shape().rank() == 2 && spans.columns() == 4,
        "attention: spans must be [S, 4], not {}", spans.shape());
}

}  // namespace

Var append_attention(Backend& backend, const FreshTokens& tokens, const Tensor& k_cache,
                     const Tensor& v_cache, const Tensor& spans, const AttentionArgs& args) {
  check_attention(tokens.q, tokens.k, tokens.v, spans);
  check_attention(tokens.q, k_cache, v_cache, spans);
  Tensor o = backend.allocate(tokens.q.shape(), tokens.q.dtype());
  backend.append_attention(tokens, k_cache, v_cache, spans, args, o);
  return {std::move(o)};
}

Var attention(Backend& backend, Tape* tape, const Var& q, const Var& k, const Var& v,
              const Tensor& spans, const AttentionArgs& args) {
  check_attention(q.value, k.value, v.value, spans);
  const Shape& qs = q.value.shape();
  Tensor o = backend.allocate(qs, q.value.dtype());
  if (!q.needs_gradient() && !k.needs_gradient() && !v.needs_gradient()) {
    backend.attention(q.value, k.value, v.value, spans, args, o, Tensor());
    return {std::move(o)};
  }
  Tensor lse = backend.allocate({qs[0], qs[1]}, DType::f32);
  backend.attention(q.value, k.value, v.value, spans, args, o, lse);
  return tape->record(o, [&backend, tape, to_q = q.without_value(), to_k = k.without_value(),
                          to_v = v.without_value(), q = q.keep(), k = k.keep(), v = v.keep(), o,
                          lse = std::move(lse), spans, args](const Tensor& d_o) {
    Tensor dq = backend.allocate(q.get().shape(), d_o.dtype());
    Tensor dk = backend.allocate(k.get().shape(), d_o.dtype());
    Tensor dv = backend.allocate(v.get().shape(), d_o.dtype());
    backend.attention_backward(q.get(), k.get(), v.get(), o, lse, d_o, spans, args, dq, dk, dv);
    tape->give(to_q, std::move(dq));
    tape->give(to_k, std::move(dk));
    tape->give(to_v, std::move(dv));
  });
}

}  // namespace wick
