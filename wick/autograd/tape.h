// Reverse-mode differentiation: values, parameters, and the tape that records what to run backward.
//
// An op takes `Tape*`; null means inference, and then no closure is built and nothing is kept. With
// a tape, an op records a step only where the gradient of one of its inputs or parameters is
// wanted; a Var with id -1 wants none. So nothing below the lowest trainable parameter is kept or
// run backward.
//
// The gradient of a Parameter is added straight into its `grad` (usually a view of one flat
// arena). The gradient of a Var lives on the tape until the step that made the Var has consumed it.
//
// A tape serves one forward and one backward pass, in one thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "wick/autograd/recompute.h"
#include "wick/core/backend.h"

namespace wick {

// A named weight. It is trainable if it has somewhere to put its gradient: f32, the shape of
// `value`.
struct Parameter {
  std::string name;
  Tensor value;
  Tensor grad;
  bool trainable() const { return static_cast<bool>(grad); }
};

struct Var {
  Tensor value;
  int id = -1;                               // -1: needs no gradient
  std::shared_ptr<Recipe> recipe = nullptr;  // set where `value` is cheaper to rebuild than to keep

  bool needs_gradient() const { return id >= 0; }
  Kept keep() const { return Kept(value, recipe); }
  // Enough to give a gradient to: a step that captures this does not keep the value alive.
  Var without_value() const { return {Tensor(), id, nullptr}; }
  Var reshaped(const Shape& shape) const;
};

class Tape {
 public:
  // Given the gradient of the recorded output, gives those of the inputs. It owns the tensor it is
  // handed, and may overwrite it if it is the sole owner.
  using Step = std::function<void(Tensor gradient)>;

  explicit Tape(Backend& backend) : backend_(backend) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // An input whose gradient is wanted by the caller: read it with `gradient` after `backward`.
  Var leaf(Tensor value);
  // The output of an op, and how to run it backward.
  Var record(Tensor value, Step step);

  // Adds to the gradient of `to`; the first one is taken over without a copy. No-op if `to` needs
  // none.
  void give(const Var& to, Tensor gradient);
  // The same for kernels that can add themselves: where to write, in the shape that the kernel
  // sees, and whether to add or overwrite.
  struct Sink {
    Tensor tensor;
    bool accumulate;
  };
  Sink sink(const Var& to, const Shape& shape);

  // Runs the steps in reverse from all the gradients given so far, dropping each step, what it
  // keeps, and its gradient as it goes. Afterwards only leaves have gradients.
  void backward();
  void backward(const Var& output, Tensor gradient);

  // Of a leaf, or of any Var before `backward`; empty if nothing has been given.
  Tensor gradient(const Var& of) const;
  size_t steps() const { return steps_.size(); }

 private:
  struct Recorded {
    int output;
    Step step;
  };
  Backend& backend_;
  std::vector<Recorded> steps_;
  std::vector<Tensor> gradients_;  // by id
  std::vector<Shape> shapes_;      // by id
  std::vector<DType> dtypes_;      // by id
};

// Runs `function` without keeping anything but its input, and runs it again on a tape of its own
// when its gradient is wanted: one more forward pass for the memory of what it would keep.
// `trainable` says whether it holds parameters that are.
Var checkpoint(Backend& backend, Tape* tape, const Var& x, bool trainable,
               std::function<Var(Tape*, const Var&)> function);

}  // namespace wick
