// Segments and scalars for the adamw kernel.
#include "wick/train/optimizer.h"

#include <array>
#include <cmath>
#include <utility>

namespace wick {

AdamW::AdamW(Backend& backend, Tensor values, Tensor gradients, std::vector<ParameterGroup> groups,
             const AdamWOptions& options)
    : backend_(backend),
      values_(std::move(values)),
      gradients_(std::move(gradients)),
      first_(backend.allocate({values_.elements()}, DType::f32)),
      second_(backend.allocate({values_.elements()}, DType::f32)),
      schedule_(backend.allocate({3}, DType::f32)),
      options_(options) {
  backend_.fill(0.0F, first_);
  backend_.fill(0.0F, second_);
  for (const ParameterGroup& group : groups) {
    segments_.push_back({group.begin, group.count, group.learning_rate_ratio, group.weight_decay});
  }
}

void AdamW::clear_gradients() {
  backend_.fill(0.0F, gradients_);
}

void AdamW::prepare(int64_t step, float learning_rate) {
  const auto correction = [step](float beta) {
    return static_cast<float>(1.0 / (1.0 - std::pow(double{beta}, static_cast<double>(step))));
  };
  const std::array scalars = {learning_rate, correction(options_.beta1),
                              correction(options_.beta2)};
  backend_.upload(std::as_bytes(std::span(scalars)), schedule_);
}

void AdamW::update(Out square_sum) {
  backend_.sum_squares(gradients_, square_sum);
  AdamwArgs args;
  args.beta1 = options_.beta1;
  args.beta2 = options_.beta2;
  args.epsilon = options_.epsilon;
  args.max_gradient_norm = options_.max_gradient_norm;
  args.square_sum = square_sum;
  args.schedule = schedule_;
  args.segments = segments_;
  backend_.adamw(gradients_, args, values_, first_, second_);
}

}  // namespace wick
