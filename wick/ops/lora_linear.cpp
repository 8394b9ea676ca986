// The base product, then the adapter on top of it.
#include "wick/ops/lora_linear.h"

#include "wick/base/error.h"
#include "wick/ops/linear.h"

namespace wick {
namespace {

void check_adapter(const Parameter& weight, const LoraTerm& lora) {
  const Shape& w = weight.value.shape();
  const Shape& a = lora.a.value.shape();
  const Shape& b = lora.b.value.shape();
  check(a.rank() == 2 && a[1] == w[1], "lora: A {} does not fit weight {} {}", a.to_string(),
        weight.name, w.to_string());
  check(b.rank() == 2 && b[0] == w[0] && b[1] == a[0],
        "lora: B {} does not fit A {} and weight {} {}", b.to_string(), a.to_string(), weight.name,
        w.to_string());
}

class LoraGradients {
 public:
  LoraGradients(Backend& backend, const Var& x, Tensor s, const LoraTerm& lora,
                LinearGradients base)
      : backend_(backend),
        input_(x.keep()),
        s_(std::move(s)),
        factors_{lora.a.value, lora.b.value, lora.scaling},
        da_(lora.a.grad),
        db_(lora.b.grad),
        dropout_(lora.dropout),
        base_(std::move(base)) {}

  void operator()(const Tensor& dy) const {
    const Tensor dx = base_(dy);
    const Tensor ds = backend_.allocate(s_.shape(), DType::f32);
    const Tensor da = da_ ? da_ : backend_.allocate(factors_.a.shape(), DType::f32);
    const Tensor db = db_ ? db_ : backend_.allocate(factors_.b.shape(), DType::f32);
    if (dropout_.probability == 0.0F) {
      backend_.lora_backward(input_.get(), s_, dy, factors_, ds, da, db, dx);
      return;
    }
    const Tensor dropped = backend_.allocate(input_.get().shape(), DType::f32);
    backend_.dropout(input_.get(), dropout_, dropped);
    Tensor d_dropped;
    if (dx) {
      d_dropped = backend_.allocate(dropped.shape(), DType::f32);
      backend_.fill(0.0F, d_dropped);
    }
    backend_.lora_backward(dropped, s_, dy, factors_, ds, da, db, d_dropped);
    if (dx) {
      backend_.dropout(d_dropped, dropout_, d_dropped);
      backend_.add(dx, d_dropped, dx);
    }
  }

 private:
  Backend& backend_;
  Kept input_;
  Tensor s_;
  LoraFactors factors_;
  Tensor da_;  // empty: frozen
  Tensor db_;
  DropoutArgs dropout_;
  LinearGradients base_;
};

}  // namespace

Var lora_linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                const Parameter* bias, const LoraTerm& lora) {
  check_adapter(weight, lora);
  Tensor y = linear_forward(backend, x.value, weight, bias);
  Tensor s = backend.allocate({x.value.rows(), lora.a.value.dim(0)}, DType::f32);
  Tensor input = x.value;
  if (lora.dropout.probability > 0.0F) {
    input = backend.allocate(x.value.shape(), DType::f32);
    backend.dropout(x.value, lora.dropout, input);
  }
  const LoraFactors factors{lora.a.value, lora.b.value, lora.scaling};
  backend.lora_forward(input, {&factors, 1}, Tensor(), s, y);

  const bool trainable = weight.trainable() || (bias != nullptr && bias->trainable()) ||
                         lora.a.trainable() || lora.b.trainable();
  if (tape == nullptr || !(trainable || x.needs_gradient())) {
    return {std::move(y)};
  }
  return tape->record(std::move(y),
                      [gradients = LoraGradients(backend, x, std::move(s), lora,
                                                 LinearGradients(backend, tape, x, weight, bias))](
                          const Tensor& dy) { gradients(dy); });
}

}  // namespace wick
