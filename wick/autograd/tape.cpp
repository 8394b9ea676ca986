// The tape: gives, sinks and the reverse walk.
#include "wick/autograd/tape.h"

#include <cassert>

namespace wick {

Var Var::reshaped(const Shape& shape) const {
  Var result{value.reshaped(shape), id, nullptr};
  if (recipe) {
    result.recipe =
        std::make_shared<Recipe>([inner = recipe, shape] { return inner->get().reshaped(shape); });
  }
  return result;
}

Var Tape::leaf(Tensor value) {
  const int id = static_cast<int>(gradients_.size());
  gradients_.emplace_back();
  shapes_.push_back(value.shape());
  dtypes_.push_back(value.dtype());
  return {std::move(value), id, nullptr};
}

Var Tape::record(Tensor value, Step step) {
  Var output = leaf(std::move(value));
  steps_.push_back({output.id, std::move(step)});
  return output;
}

void Tape::give(const Var& to, Tensor gradient) {
  if (!to.needs_gradient()) {
    return;
  }
  Tensor& sum = gradients_[static_cast<size_t>(to.id)];
  gradient = gradient.reshaped(shapes_[static_cast<size_t>(to.id)]);
  if (!sum) {
    sum = std::move(gradient);
  } else if (sum.sole_owner()) {
    backend_.add(sum, gradient, sum);
  } else {  // someone else still reads it
    const Tensor fresh = backend_.allocate(sum.shape(), sum.dtype());
    backend_.add(sum, gradient, fresh);
    sum = fresh;
  }
}

Tape::Sink Tape::sink(const Var& to, const Shape& shape) {
  assert(to.needs_gradient());
  Tensor& sum = gradients_[static_cast<size_t>(to.id)];
  const bool first = !sum;
  if (first) {
    sum =
        backend_.allocate(shapes_[static_cast<size_t>(to.id)], dtypes_[static_cast<size_t>(to.id)]);
  } else if (!sum.sole_owner()) {
    const Tensor fresh = backend_.allocate(sum.shape(), sum.dtype());
    backend_.copy(sum, fresh);
    sum = fresh;
  }
  return {sum.reshaped(shape), !first};
}

void Tape::backward() {
  while (!steps_.empty()) {
    Recorded last = std::move(steps_.back());
    steps_.pop_back();
    Tensor gradient = std::move(gradients_[static_cast<size_t>(last.output)]);
    gradients_[static_cast<size_t>(last.output)] = Tensor();
    if (gradient) {  // else nothing that the loss depends on has used this output
      last.step(std::move(gradient));
    }
  }
}

void Tape::backward(const Var& output, Tensor gradient) {
  give(output, std::move(gradient));
  backward();
}

Tensor Tape::gradient(const Var& of) const {
  return of.needs_gradient() ? gradients_[static_cast<size_t>(of.id)] : Tensor();
}

Var checkpoint(Backend& backend, Tape* tape, const Var& x, bool trainable,
               std::function<Var(Tape*, const Var&)> function) {
  Var output{function(nullptr, Var{x.value}).value};
  if (tape == nullptr || !(trainable || x.needs_gradient())) {
    return output;
  }
  return tape->record(std::move(output.value),
                      [&backend, tape, x, function = std::move(function)](Tensor gradient) {
                        Tape inner(backend);
                        const Var input = x.needs_gradient() ? inner.leaf(x.value) : Var{x.value};
                        const Var again = function(&inner, input);
                        inner.backward(again, std::move(gradient));
                        if (Tensor dx = inner.gradient(input)) {
                          tape->give(x, std::move(dx));
                        }
                      });
}

}  // namespace wick
