// RMS norm forward and backward.
#include "wick/ops/norm.h"

#include "wick/base/error.h"

namespace wick {

Var rms_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight, float eps) {
  check(weight.value.elements() == x.value.columns(),
        "rms_norm: weight {} has {} values, input {} has {} columns", weight.name,
        weight.value.elements(), x.value.shape().to_string(), x.value.columns());
  const Shape shape = x.value.shape();
  const Shape rows{shape.rows(), shape.columns()};
  Tensor y = backend.allocate(rows, DType::f32);
  if (tape == nullptr) {
    backend.rms_norm(x.value.reshaped(rows), weight.value, eps, y, Tensor());
    return {y.reshaped(shape)};
  }
  auto recipe =
      std::make_shared<Recipe>([&backend, x = x.keep(), w = weight.value, eps, shape, rows] {
        Tensor again = backend.allocate(rows, DType::f32);
        backend.rms_norm(x.get().reshaped(rows), w, eps, again, Tensor());
        return again.reshaped(shape);
      });
  if (!weight.trainable() && !x.needs_gradient()) {
    backend.rms_norm(x.value.reshaped(rows), weight.value, eps, y, Tensor());
    return {y.reshaped(shape), -1, std::move(recipe)};
  }
  Tensor rstd = backend.allocate({rows[0]}, DType::f32);
  backend.rms_norm(x.value.reshaped(rows), weight.value, eps, y, rstd);
  Var output = tape->record(
      y.reshaped(shape), [&backend, tape, to = x.without_value(), x = x.keep(), w = weight.value,
                          dw = weight.grad, rstd = std::move(rstd), rows](const Tensor& dy) {
        const Tape::Sink dx = to.needs_gradient()
                                  ? tape->sink(to, rows)
                                  : Tape::Sink{backend.allocate(rows, DType::f32), false};
        backend.rms_norm_backward(x.get().reshaped(rows), w, rstd, dy.reshaped(rows), dx.accumulate,
                                  dx.tensor, dw);
      });
  output.recipe = std::move(recipe);
  return output;
}

}  // namespace wick
