// The linear layer: one product forward, up to two and a column sum backward.
#include "wick/ops/linear.h"

#include "wick/base/error.h"

namespace wick {

Tensor linear_forward(Backend& backend, const Tensor& x, const Parameter& weight,
                      const Parameter* bias) {
  const Shape& w = weight.value.shape();
  check(w.rank() == 2, "linear: weight {} must have two dimensions, not {}", weight.name,
        w.to_string());
  check(x.shape().rank() == 2 && x.columns() == w[1], "linear: input {} does not fit weight {} {}",
        x.shape().to_string(), weight.name, w.to_string());
  check(bias == nullptr || bias->value.elements() == w[0],
        "linear: bias {} has {} values, its layer {} outputs", bias == nullptr ? "" : bias->name,
        bias == nullptr ? 0 : bias->value.elements(), w[0]);
  Tensor y = backend.allocate({x.rows(), w[0]}, DType::f32);
  backend.matmul(x, weight.value, {.bias = bias == nullptr ? nullptr : &bias->value}, y);
  return y;
}

LinearGradients::LinearGradients(Backend& backend, Tape* tape, const Var& x,
                                 const Parameter& weight, const Parameter* bias)
    : backend_(backend),
      tape_(tape),
      x_(x.without_value()),
      input_(weight.trainable() ? x.keep() : Kept()),
      weight_(weight.value),
      weight_grad_(weight.grad),
      bias_grad_(bias == nullptr ? Tensor() : bias->grad) {}

Tensor LinearGradients::operator()(const Tensor& dy) const {
  if (weight_grad_) {
    backend_.matmul(dy, input_.get(), {.form = MatmulForm::tn, .accumulate = true}, weight_grad_);
  }
  if (bias_grad_) {
    backend_.add_column_sums(dy, bias_grad_);
  }
  if (!x_.needs_gradient()) {
    return {};
  }
  const Tape::Sink dx = tape_->sink(x_, {dy.rows(), weight_.dim(1)});
  backend_.matmul(dy, weight_, {.form = MatmulForm::nn, .accumulate = dx.accumulate}, dx.tensor);
  return dx.tensor;
}

Var linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
           const Parameter* bias) {
  Tensor y = linear_forward(backend, x.value, weight, bias);
  const bool trainable = weight.trainable() || (bias != nullptr && bias->trainable());
  if (tape == nullptr || !(trainable || x.needs_gradient())) {
    return {std::move(y)};
  }
  return tape->record(std::move(y), [gradients = LinearGradients(backend, tape, x, weight, bias)](
                                        const Tensor& dy) { gradients(dy); });
}

}  // namespace wick
