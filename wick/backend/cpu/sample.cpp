// Drawing one token.
#include "wick/backend/cpu/sample.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace wick::cpu {

void sample(const Context&, const SampleArgs& args, const Tensor& logits, const Tensor& id) {
  const int64_t V = logits.elements();
  float* row = logits.data<float>();
  for (const int32_t seen : args.seen) {
    row[seen] =
        row[seen] > 0 ? row[seen] / args.repetition_penalty : row[seen] * args.repetition_penalty;
  }
  const auto best = static_cast<int32_t>(std::max_element(row, row + V) - row);
  if (args.temperature <= 0) {
    *id.data<int32_t>() = best;
    return;
  }
  std::vector<int32_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t i, int32_t j) { return row[i] > row[j]; });
  if (args.top_k > 0 && args.top_k < V) {
    order.resize(args.top_k);
  }
  std::vector<double> weights(order.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weights[i] = std::exp((double{row[order[i]]} - row[best]) / args.temperature);
    total += weights[i];
  }
  double nucleus = 0;
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || nucleus < args.top_p * total)) {
    nucleus += weights[kept++];
  }
  std::vector<double> by_id(V, 0.0);
  for (size_t i = 0; i < kept; ++i) {
    by_id[order[i]] = weights[i];
  }
  double running = 0;
  int32_t chosen = best;
  for (int32_t v = 0; v < V; ++v) {
    if (by_id[v] > 0) {
      running += by_id[v];
      chosen = v;
      if (running > args.uniform * nucleus) {
        break;
      }
    }
  }
  *id.data<int32_t>() = chosen;
}

}  // namespace wick::cpu
