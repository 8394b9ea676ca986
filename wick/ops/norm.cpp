// RMS norm and layer norm, forward and backward.
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

namespace {

void check_layer_norm(const Var& x, const Parameter& weight, const Parameter& bias) {
  for (const Parameter* p : {&weight, &bias}) {
    const bool absent = p == &bias && !p->value;
    check(absent || p->value.elements() == x.value.columns(),
          "layer_norm: {} has {} values, input {} has {} columns", p->name,
          p->value ? p->value.elements() : 0, x.value.shape().to_string(), x.value.columns());
  }
}

}  // namespace

Var layer_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
               const Parameter& bias, float eps) {
  check_layer_norm(x, weight, bias);
  const Shape shape = x.value.shape();
  const Shape rows{shape.rows(), shape.columns()};
  const auto forward = [&backend, w = weight.value, b = bias.value, eps, shape, rows](
                           const Tensor& from, const Tensor& mean_rstd) {
    Tensor y = backend.allocate(rows, DType::f32);
    backend.layer_norm(from.reshaped(rows), w, b, eps, y, mean_rstd);
    return y.reshaped(shape);
  };
  if (tape == nullptr) {
    return {forward(x.value, Tensor())};
  }
  auto recipe =
      std::make_shared<Recipe>([forward, x = x.keep()] { return forward(x.get(), Tensor()); });
  if (!weight.trainable() && !bias.trainable() && !x.needs_gradient()) {
    return {forward(x.value, Tensor()), -1, std::move(recipe)};
  }
  Tensor mean_rstd = backend.allocate({rows[0], 2}, DType::f32);
  Tensor y = forward(x.value, mean_rstd);
  Var output = tape->record(
      std::move(y), [&backend, tape, to = x.without_value(), x = x.keep(), w = weight.value,
                     dw = weight.grad, db = bias.grad, mean_rstd, rows](const Tensor& dy) {
        const Tape::Sink dx = to.needs_gradient()
                                  ? tape->sink(to, rows)
                                  : Tape::Sink{backend.allocate(rows, DType::f32), false};
        backend.layer_norm_backward(x.get().reshaped(rows), w, mean_rstd, dy.reshaped(rows),
                                    dx.accumulate, dx.tensor, dw, db);
      });
  output.recipe = std::move(recipe);
  return output;
}

}  // namespace wick
