// The linear layer: one product forward, up to two and a column sum backward.
#include "wick/ops/linear.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"
#include "wick/ops/lora_linear.h"

namespace wick {

void check_linear(const Tensor& x, const Parameter& weight, const Parameter* bias) {
  const Shape& w = weight.value.shape();
  check(w.rank() == 2, "linear: weight {} must have two dimensions, not {}", weight.name, w);
  check(x.shape().rank() == 2 && x.columns() == w[1], "linear: input {} does not fit weight {} {}",
        x.shape(), weight.name, w);
  if (bias != nullptr) {
    check(bias->value.elements() == w[0], "linear: bias {} has {} values, its layer {} outputs",
          bias->name, bias->value.elements(), w[0]);
  }
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

Tape::Sink LinearGradients::all_but_input(const Tensor& dy) const {
  if (weight_grad_) {
    backend_.matmul(dy, input_.get(), {.form = MatmulForm::tn, .accumulate = true}, weight_grad_);
  }
  if (bias_grad_) {
    backend_.add_column_sums(dy, bias_grad_);
  }
  if (!x_.needs_gradient()) {
    return {};
  }
  return tape_->sink(x_, {dy.rows(), weight_.dim(1)});
}

Tensor LinearGradients::operator()(const Tensor& dy) const {
  const Tape::Sink dx = all_but_input(dy);
  if (dx.tensor) {
    backend_.matmul(dy, weight_, {.form = MatmulForm::nn, .accumulate = dx.accumulate}, dx.tensor);
  }
  return dx.tensor;
}

Var linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
           const Parameter* bias) {
  return linear_group(backend, tape, x, {{{&weight, bias}}}).front();
}

}  // namespace wick
