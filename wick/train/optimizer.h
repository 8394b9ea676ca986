// AdamW over one arena: every trained value, its gradient and its two moments lie in flat f32
// tensors, so that a step is one kernel call whatever the number of parameters.
#pragma once

#include <string>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

// A run of the arena with settings of its own.
struct ParameterGroup {
  int64_t begin = 0;
  int64_t count = 0;
  float learning_rate_ratio = 1.0F;  // times the step's learning rate
  float weight_decay = 0.0F;
};

struct AdamWOptions {
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  float max_gradient_norm = 0.0F;  // longer gradients are scaled to this norm; 0: no limit
};

class AdamW {
 public:
  // `values` and `gradients` are f32 [n]; the groups do not overlap. Moments start at zero.
  AdamW(Backend& backend, Tensor values, Tensor gradients, std::vector<ParameterGroup> groups,
        const AdamWOptions& options);

  void clear_gradients();
  // What the next `update` is to know; uploads it. `step` counts from 1.
  void prepare(int64_t step, float learning_rate);
  // Changes the values, unless a gradient is not finite. `square_sum` (f32 [1]) is given the sum of
  // squares of all gradients as they were before clipping. May be recorded.
  void update(Out square_sum);

  const Tensor& values() const { return values_; }
  const Tensor& gradients() const { return gradients_; }
  const Tensor& first_moment() const { return first_; }
  const Tensor& second_moment() const { return second_; }

 private:
  Backend& backend_;
  Tensor values_;
  Tensor gradients_;
  Tensor first_;
  Tensor second_;
  Tensor schedule_;  // see AdamwArgs
  std::vector<AdamwSegment> segments_;
  AdamWOptions options_;
};

}  // namespace wick
