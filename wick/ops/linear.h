// y = x W^T (+ bias), with gradients of x, and of W and bias where they are trainable.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// x [T, in]; weight [out, in] of any weight dtype; bias [out] or null. Returns [T, out] of x's
// dtype.
Var linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
           const Parameter* bias = nullptr);

// Throws Error where the shapes do not fit.
void check_linear(const Tensor& x, const Parameter& weight, const Parameter* bias);

// The gradients of one linear layer, which lora_linear shares.
class LinearGradients {
 public:
  LinearGradients(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                  const Parameter* bias);
  // Adds to the gradients of weight and bias, and gives x its own if it wants one. Returns where
  // the latter is summed, else an empty tensor.
  Tensor operator()(const Tensor& dy) const;
  // The same, but leaves x's own to the caller: where it is to be summed (an empty tensor:
  // nowhere).
  Tape::Sink all_but_input(const Tensor& dy) const;
  const Tensor& weight() const { return weight_; }

 private:
  Backend& backend_;
  Tape* tape_;
  Var x_;          // without its value
  Kept input_;     // only for the gradient of the weight
  Tensor weight_;  // only for the gradient of x
  Tensor weight_grad_;
  Tensor bias_grad_;
};

}  // namespace wick
