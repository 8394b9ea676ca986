// The gated activation and the residual sum.
#include "wick/ops/activation.h"

#include "wick/base/error.h"

namespace wick {

Var gate(Backend& backend, Tape* tape, const Var& g, const Var& u, Activation activation) {
  check(g.value.shape() == u.value.shape(), "gate: shapes differ: {} and {}",
        g.value.shape().to_string(), u.value.shape().to_string());
  Tensor h = backend.allocate(g.value.shape(), DType::f32);
  backend.gate(g.value, u.value, activation, h);
  if (tape == nullptr) {
    return {std::move(h)};
  }
  auto recipe = std::make_shared<Recipe>([&backend, g = g.value, u = u.value, activation] {
    Tensor again = backend.allocate(g.shape(), DType::f32);
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
          return old.sole_owner() ? old : backend.allocate(old.shape(), DType::f32);
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

Var add(Backend& backend, Tape* tape, const Var& a, Var b) {
  check(a.value.shape() == b.value.shape(), "add: shapes differ: {} and {}",
        a.value.shape().to_string(), b.value.shape().to_string());
  Tensor y = b.value.sole_owner() ? b.value : backend.allocate(a.value.shape(), DType::f32);
  backend.add(a.value, b.value, y);
  if (!a.needs_gradient() && !b.needs_gradient()) {
    return {std::move(y)};
  }
  return tape->record(std::move(y),
                      [tape, a = a.without_value(), b = b.without_value()](Tensor gradient) {
                        tape->give(a, gradient);
                        tape->give(b, std::move(gradient));
                      });
}

}  // namespace wick
