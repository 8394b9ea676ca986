// Cross-entropy: one row is one task.
#include "wick/backend/cpu/loss.h"

#include <cmath>

namespace wick::cpu {

void cross_entropy(const Context& context, const Tensor& targets, const CrossEntropyArgs& args,
                   const Tensor& logits, const Tensor& losses) {
  const int64_t V = logits.columns();
  context.pool.run(logits.rows(), [&](int64_t i) {
    float* row = logits.data<float>() + i * V;
    const int32_t target = targets.data<int32_t>()[i];
    const float largest = *std::max_element(row, row + V);
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) {
      sum += std::exp(row[v] - largest);
    }
    losses.data<float>()[i] = static_cast<float>(std::log(sum)) + largest - row[target];
    if (args.gradient) {
      const float scale = args.gradient_scale / static_cast<float>(sum);
      for (int64_t v = 0; v < V; ++v) {
        row[v] = scale * std::exp(row[v] - largest);
      }
      row[target] -= args.gradient_scale;
    }
  });
}

}  // namespace wick::cpu
