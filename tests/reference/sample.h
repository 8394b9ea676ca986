// The plain meaning of `sample` in core/backend.h, in double precision with a full sort.
//
// Penalty: a seen token's logit is divided by it if positive, else multiplied. Tokens are ranked by
// logit, the smaller id first among equals; top-k keeps the first k, top-p of those the fewest
// whose probability reaches it. What is kept is walked in the order of ids until the running
// probability passes `uniform`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "wick/core/kernel_args.h"

namespace wick::reference {

struct Kept {
  int32_t id;
  double begin, end;  // its share of [0, 1)
};

// The tokens that may be drawn, in the order of ids.
inline std::vector<Kept> sampling_shares(const SampleArgs& args, std::vector<float> logits) {
  for (const int32_t id : args.seen) {
    float& logit = logits[id];
    logit = logit > 0 ? logit / args.repetition_penalty : logit * args.repetition_penalty;
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t i, int32_t j) { return logits[i] > logits[j]; });
  if (args.temperature <= 0) {
    return {{order[0], 0.0, 1.0}};
  }
  if (args.top_k > 0 && args.top_k < static_cast<int64_t>(order.size())) {
    order.resize(args.top_k);
  }
  std::vector<double> weights(logits.size(), 0.0);
  double total = 0;
  for (const int32_t id : order) {
    weights[id] = std::exp((double{logits[id]} - logits[order[0]]) / args.temperature);
    total += weights[id];
  }
  if (args.top_p < 1) {
    double nucleus = 0;
    size_t kept = 0;
    do {
      nucleus += weights[order[kept++]];
    } while (kept < order.size() && nucleus < args.top_p * total);
    order.resize(kept);
    total = nucleus;
  }
  std::sort(order.begin(), order.end());
  std::vector<Kept> shares;
  double running = 0;
  for (const int32_t id : order) {
    const double begin = running / total;
    running += weights[id];
    shares.push_back({id, begin, running / total});
  }
  return shares;
}

}  // namespace wick::reference
