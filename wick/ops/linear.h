// y = x W^T (+ bias), with gradients of x, and of W and bias where they are trainable.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

// x [T, in] f32; weight [out, in] of any weight dtype; bias [out] or null. Returns [T, out] f32.
Var linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
           const Parameter* bias = nullptr);

// The parts that lora_linear shares: the checked product, and the gradients of one linear layer.
Tensor linear_forward(Backend& backend, const Tensor& x, const Parameter& weight,
                      const Parameter* bias);

class LinearGradients {
 public:
  LinearGradients(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                  const Parameter* bias);
  // Adds to the gradients of weight and bias, and gives x its own if it wants one. Returns where
  // the latter is summed, else an empty tensor.
  Tensor operator()(const Tensor& dy) const;

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
