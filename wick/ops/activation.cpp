// The gated activation and the residual sum.
#include "wick/ops/activation.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"

namespace wick {

Var gate(Backend& backend, Tape* tape, const Var& g, const Var& u, Activation activation) {
  check_same_shape("gate", g, u);
  Tensor h = backend.allocate(g.value.shape(), g.value.dtype());
  backend.gate(g.value, u.value, activation, h);
  if (tape == nullptr) {
    return {std::move(h)};
  }
  auto recipe = std::make_shared<Recipe>([&backend, g = g.value, u = u.value, activation] {
    Tensor again = backend.allocate(g.shape(), g.dtype());
    backend.gate(g, u, activation, again);
    return again;
  });
  if (!g.needs_gradient() && !u.needs_gradient()) {
    return {std::move(h), -1, std::move(recipe)};
  }
  Var output = tape->record(
      std::move(h), [&backend, tape, to_g = g.without_value(), to_u = u.without_value(),
                     g = g.value, u = u.value, activation](const Tensor& dh) {
        const auto place = [&](const Tensor& old) {
          return old.sole_owner() ? old : backend.allocate(old.shape(), old.dtype());
        };
        Tensor dg = place(g);
        Tensor du = place(u);
        backend.gate_backward(g, u, dh, activation, dg, du);
        tape->give(to_g, std::move(dg));
        tape->give(to_u, std::move(du));
      });
  output.recipe = std::move(recipe);
  return output;
}

void check_same_shape(const char* op, const Var& a, const Var& b) {
  check(a.value.shape() == b.value.shape(), "{}: shapes differ: {} and {}", op, a.value.shape(),
        b.value.shape());
}

Tensor place_of_sum(Backend& backend, const Var& a, const Var& b) {
  return b.value.sole_owner() ? b.value : backend.allocate(a.value.shape(), a.value.dtype());
}

Var record_sum(Tape* tape, const Var& a, const Var& b, Tensor sum) {
  if (!a.needs_gradient() && !b.needs_gradient()) {
    return {std::move(sum)};
  }
  return tape->record(std::move(sum),
                      [tape, a = a.without_value(), b = b.without_value()](Tensor gradient) {
                        tape->give(a, gradient);
                        tape->give(b, std::move(gradient));
                      });
}

Var add(Backend& backend, Tape* tape, const Var& a, Var b) {
  check_same_shape("add", a, b);
  const Tensor sum = place_of_sum(backend, a, b);
  backend.add(a.value, b.value, sum);
  return record_sum(tape, a, b, sum);
}

}  // namespace wick
