// Segments for the adamw kernel.
#include "wick/train/optimizer.h"

#include <algorithm>
#include <utility>

namespace wick {

AdamW::AdamW(Backend& backend, Tensor values, Tensor gradients, std::vector<ParameterGroup> groups,
             const AdamWOptions& options)
    : backend_(backend),
      values_(std::move(values)),
      gradients_(std::move(gradients)),
      first_(backend.allocate({values_.elements()}, DType::f32)),
      second_(backend.allocate({values_.elements()}, DType::f32)),
      groups_(std::move(groups)),
      options_(options) {
  backend_.fill(0.0F, first_);
  backend_.fill(0.0F, second_);
}

void AdamW::clear_gradients() {
  backend_.fill(0.0F, gradients_);
}

void AdamW::sum_squares_of_gradients(Out out) {
  backend_.sum_squares(gradients_, out);
}

void AdamW::step(int64_t step, float learning_rate, float gradient_scale) {
  std::vector<AdamwSegment> segments;
  segments.reserve(groups_.size());
  for (const ParameterGroup& group : groups_) {
    segments.push_back(
        {group.begin, group.count, learning_rate * group.learning_rate_ratio, group.weight_decay});
  }
  AdamwArgs args;
  args.beta1 = options_.beta1;
  args.beta2 = options_.beta2;
  args.epsilon = options_.epsilon;
  args.step = step;
  args.gradient_scale = gradient_scale;
  args.segments = segments;
  backend_.adamw(gradients_, args, values_, first_, second_);
}

float clip_factor(double norm, double limit) {
  return limit > 0 ? static_cast<float>(std::min(1.0, limit / (norm + 1e-6))) : 1.0F;
}

}  // namespace wick
