// RMS norm, alone and after a residual sum, and layer norm; forward and backward.
#include "wick/ops/norm.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"
#include "wick/ops/activation.h"

namespace wick {
namespace {

Shape rows_of(const Tensor& x) {
  return {x.shape().rows(), x.shape().columns()};
}

void check_weight(const Tensor& x, const Parameter& weight) {
  check(weight.value.elements() == x.columns(),
        "rms_norm: weight {} has {} values, input {} has {} columns", weight.name,
        weight.value.elements(), x.shape(), x.columns());
}

bool keeps_statistics(const Tape* tape, bool x_needs_gradient, const Parameter& weight) {
  return tape != nullptr && (weight.trainable() || x_needs_gradient);
}

// The normed y of x as a Var: with its recipe and, where `rstd` was kept, its backward.
Var record_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight, float eps,
                const Tensor& y, Tensor rstd) {
  const Shape shape = x.value.shape();
  const Shape rows = rows_of(x.value);
  if (tape == nullptr) {
    return {y.reshaped(shape)};
  }
  auto recipe =
      std::make_shared<Recipe>([&backend, x = x.keep(), w = weight.value, eps, shape, rows] {
        Tensor again = backend.allocate(rows, x.get().dtype());
        backend.rms_norm(x.get().reshaped(rows), w, eps, again, Tensor());
        return again.reshaped(shape);
      });
  if (!rstd) {
    return {y.reshaped(shape), -1, std::move(recipe)};
  }
  Var output = tape->record(
      y.reshaped(shape), [&backend, tape, to = x.without_value(), x = x.keep(), w = weight.value,
                          dw = weight.grad, rstd = std::move(rstd), rows](const Tensor& dy) {
        const Tape::Sink dx = to.needs_gradient()
                                  ? tape->sink(to, rows)
                                  : Tape::Sink{backend.allocate(rows, dy.dtype()), false};
        backend.rms_norm_backward(x.get().reshaped(rows), w, rstd, dy.reshaped(rows), dx.accumulate,
                                  dx.tensor, dw);
      });
  output.recipe = std::move(recipe);
  return output;
}

}  // namespace

Var rms_norm(Backend& backend, Tape* tape, const Var& x, const Parameter& weight, float eps) {
  check_weight(x.value, weight);
  const Shape rows = rows_of(x.value);
  const Tensor y = backend.allocate(rows, x.value.dtype());
  Tensor rstd;
  if (keeps_statistics(tape, x.needs_gradient(), weight)) {
    rstd = backend.allocate({rows[0]}, DType::f32);
  }
  backend.rms_norm(x.value.reshaped(rows), weight.value, eps, y, rstd);
  return record_norm(backend, tape, x, weight, eps, y, std::move(rstd));
}

SumAndNorm add_rms_norm(Backend& backend, Tape* tape, const Var& a, Var b, const Parameter& weight,
                        float eps) {
  check_same_shape("add_rms_norm", a, b);
  check_weight(a.value, weight);
  const Shape rows = rows_of(a.value);
  const Tensor sum = place_of_sum(backend, a, b);
  const Tensor y = backend.allocate(rows, sum.dtype());
  Tensor rstd;
  if (keeps_statistics(tape, a.needs_gradient() || b.needs_gradient(), weight)) {
    rstd = backend.allocate({rows[0]}, DType::f32);
  }
  backend.add_rms_norm(a.value.reshaped(rows), b.value.reshaped(rows), weight.value, eps,
                       sum.reshaped(rows), y, rstd);
  b.value = Tensor();
  SumAndNorm result;
  result.sum = record_sum(tape, a, b, sum);
  result.normed = record_norm(backend, tape, result.sum, weight, eps, y, std::move(rstd));
  return result;
}

namespace {

void check_layer_norm(const Var& x, const Parameter& weight, const Parameter& bias) {
  for (const Parameter* p : {&weight, &bias}) {
    const bool absent = p == &bias && !p->value;
    check(absent || p->value.elements() == x.value.columns(),
          "layer_norm: {} has {} values, input {} has {} columns", p->name,
          p->value ? p->value.elements() : 0, x.value.shape(), x.value.columns());
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
    Tensor y = backend.allocate(rows, from.dtype());
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
                                  : Tape::Sink{backend.allocate(rows, dy.dtype()), false};
        backend.layer_norm_backward(x.get().reshaped(rows), w, mean_rstd, dy.reshaped(rows),
                                    dx.accumulate, dx.tensor, dw, db);
      });
  output.recipe = std::move(recipe);
  return output;
}

}  // namespace wick
