// Drawing one token without sorting the vocabulary.
//
// top-k: the k-th largest of the blocks' maxima bounds the k-th largest logit from below, so only
// the few blocks that reach it are searched. top-p: a histogram of the weights by their leading
// bits finds the bucket where the nucleus ends, and only that bucket is sorted.
#include "wick/backend/cpu/sample.h"

#include "wick/backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "wick/backend/cpu/sample.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "wick/backend/cpu/simd_inl.h"

HWY_BEFORE_NAMESPACE();
namespace wick::cpu::HWY_NAMESPACE {

// The largest of each block of `block` values; NaN never is.
void BlockMaxima(const float* x, int64_t count, int64_t block, float* maxima) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t begin = 0; begin < count; begin += block, ++maxima) {
    const int64_t end = HWY_MIN(count, begin + block);
    VF most = hn::Set(d, -HUGE_VALF);
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const VF value = hn::LoadU(d, x + i);
      most = hn::IfThenElse(hn::Gt(value, most), value, most);
    }
    float largest = max_of(d, most);
    for (; i < end; ++i) {
      largest = x[i] > largest ? x[i] : largest;
    }
    *maxima = largest;
  }
}

// x becomes e^((x - shift) scale); the sum of each block of `block` values goes to `sums`.
void WeightsOfLogits(float shift, float scale, int64_t count, int64_t block, float* x,
                     float* sums) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF shifts = hn::Set(d, shift);
  const VF scales = hn::Set(d, scale);
  const auto weigh = [&](VF value)
                         HWY_ATTR { return exp(d, hn::Mul(hn::Sub(value, shifts), scales)); };
  for (int64_t begin = 0; begin < count; begin += block, ++sums) {
    const int64_t end = HWY_MIN(count, begin + block);
    VF sum = hn::Zero(d);
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const VF weight = weigh(hn::LoadU(d, x + i));
      hn::StoreU(weight, d, x + i);
      sum = hn::Add(sum, weight);
    }
    *sums = sum_of(d, sum);
    if (i < end) {
      store_part(d, weigh(load_part(d, x + i, end - i)), x + i, end - i);
      for (; i < end; ++i) {
        *sums += x[i];
      }
    }
  }
}

// Clears the weights below `least`; the sum of each block of `block` values goes to `sums`.
void KeepLargeWeights(float least, int64_t count, int64_t block, float* x, float* sums) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF threshold = hn::Set(d, least);
  for (int64_t begin = 0; begin < count; begin += block, ++sums) {
    const int64_t end = HWY_MIN(count, begin + block);
    VF sum = hn::Zero(d);
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const VF weight = hn::LoadU(d, x + i);
      const VF kept = hn::IfThenElseZero(hn::Ge(weight, threshold), weight);
      hn::StoreU(kept, d, x + i);
      sum = hn::Add(sum, kept);
    }
    *sums = sum_of(d, sum);
    for (; i < end; ++i) {
      x[i] = x[i] >= least ? x[i] : 0.0F;
      *sums += x[i];
    }
  }
}

}  // namespace wick::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <bit>
#include <cmath>
#include <vector>

namespace wick::cpu {

HWY_EXPORT(BlockMaxima);
HWY_EXPORT(WeightsOfLogits);
HWY_EXPORT(KeepLargeWeights);

namespace {

constexpr int64_t kBlock = 64;            // values whose maximum is kept
constexpr int64_t kSumBlock = 1024;       // values whose sum is kept
constexpr int64_t kTaskElements = 32768;  // a multiple of both

std::vector<float> block_maxima(const Context& context, const float* logits, int64_t V) {
  std::vector<float> maxima(ceil_div(V, kBlock));
  for_ranges(context, V, kTaskElements, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(BlockMaxima)
    (logits + begin, end - begin, kBlock, maxima.data() + begin / kBlock);
  });
  return maxima;
}

// The first of the largest; 0 if nothing compares.
int32_t first_largest(const float* logits, int64_t V, const std::vector<float>& maxima) {
  const auto best = std::max_element(maxima.begin(), maxima.end());
  const int64_t begin = (best - maxima.begin()) * kBlock;
  const float* end = logits + std::min(V, begin + kBlock);
  const float* found = std::find(logits + begin, end, *best);
  return found == end ? 0 : static_cast<int32_t>(found - logits);
}

struct Candidate {
  float value;
  int32_t id;
};

bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The k largest logits, in order of rank.
std::vector<Candidate> largest_logits(const float* logits, int64_t V,
                                      const std::vector<float>& maxima, int64_t k) {
  float bound = -INFINITY;
  if (k <= static_cast<int64_t>(maxima.size())) {
    std::vector<float> ranked = maxima;
    std::nth_element(ranked.begin(), ranked.begin() + (k - 1), ranked.end(), std::greater<>());
    bound = ranked[k - 1];
  }
  std::vector<Candidate> candidates;
  for (size_t block = 0; block < maxima.size(); ++block) {
    if (maxima[block] < bound) {
      continue;
    }
    const int64_t begin = static_cast<int64_t>(block) * kBlock;
    for (int64_t v = begin; v < std::min(V, begin + kBlock); ++v) {
      if (logits[v] >= bound) {
        candidates.push_back({logits[v], static_cast<int32_t>(v)});
      }
    }
  }
  const auto kept = std::min<int64_t>(k, static_cast<int64_t>(candidates.size()));
  std::partial_sort(candidates.begin(), candidates.begin() + kept, candidates.end(), ranks_before);
  candidates.resize(kept);
  return candidates;
}

// Cuts candidates that are in order of rank, with weights for values, to the nucleus.
void keep_nucleus(std::vector<Candidate>& candidates, float top_p) {
  double total = 0;
  for (const Candidate& candidate : candidates) {
    total += candidate.value;
  }
  double nucleus = 0;
  size_t kept = 0;
  do {
    nucleus += candidates[kept++].value;
  } while (kept < candidates.size() && nucleus < top_p * total);
  candidates.resize(kept);
}

int32_t draw(std::vector<Candidate> candidates, float uniform) {
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double total = 0;
  for (const Candidate& candidate : candidates) {
    total += candidate.value;
  }
  double running = 0;
  for (const Candidate& candidate : candidates) {
    running += candidate.value;
    if (running > uniform * total) {
      return candidate.id;
    }
  }
  return candidates.back().id;
}

// Weights of the whole vocabulary and their sums by blocks.
struct Weights {
  float* values;
  int64_t count;
  std::vector<float> sums;

  double total() const {
    double sum = 0;
    for (const float part : sums) {
      sum += part;
    }
    return sum;
  }
};

// Clears all weights but those of the nucleus.
void keep_nucleus(const Context& context, Weights& weights, float top_p) {
  constexpr int kShift = 19;  // leaves exponent and four bits of mantissa
  constexpr size_t kBuckets = (0x3F800000U >> kShift) + 1;
  const double wanted = top_p * weights.total();
  // What is this light weighs less than the rest outside the nucleus, even all together.
  const auto least =
      static_cast<float>((1.0 - top_p) * weights.total() / static_cast<double>(weights.count));
  std::vector<double> mass(kBuckets, 0.0);
  for (int64_t v = 0; v < weights.count; ++v) {
    const float weight = weights.values[v];
    if (weight >= least) {
      mass[std::bit_cast<uint32_t>(weight) >> kShift] += weight;
    }
  }
  size_t last = kBuckets - 1;
  double above = 0;
  while (last > 0 && above + mass[last] < wanted) {
    above += mass[last--];
  }
  std::vector<Candidate> border;
  for (int64_t v = 0; v < weights.count; ++v) {
    if (std::bit_cast<uint32_t>(weights.values[v]) >> kShift == last) {
      border.push_back({weights.values[v], static_cast<int32_t>(v)});
    }
  }
  std::sort(border.begin(), border.end(), ranks_before);
  size_t kept = 0;
  while (kept < border.size() && (kept == 0 || above < wanted)) {
    above += border[kept++].value;
  }
  const float lightest = kept > 0 ? border[kept - 1].value : 0.0F;
  for (; kept < border.size(); ++kept) {
    weights.values[border[kept].id] = 0;  // as heavy as the lightest one kept, but later
  }
  for_ranges(context, weights.count, kTaskElements, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(KeepLargeWeights)
    (lightest, end - begin, kSumBlock, weights.values + begin,
     weights.sums.data() + begin / kSumBlock);
  });
}

int32_t draw(const Weights& weights, float uniform, int32_t otherwise) {
  const double wanted = uniform * weights.total();
  double running = 0;
  size_t block = 0;
  while (block + 1 < weights.sums.size() && running + weights.sums[block] <= wanted) {
    running += weights.sums[block++];
  }
  int32_t chosen = otherwise;
  const int64_t begin = static_cast<int64_t>(block) * kSumBlock;
  for (int64_t v = begin; v < std::min(weights.count, begin + kSumBlock); ++v) {
    if (weights.values[v] > 0) {
      running += weights.values[v];
      chosen = static_cast<int32_t>(v);
      if (running > wanted) {
        break;
      }
    }
  }
  return chosen;
}

}  // namespace

void sample(const Context& context, const SampleArgs& args, const Tensor& logits,
            const Tensor& id) {
  const int64_t V = logits.elements();
  float* row = logits.data<float>();
  for (const int32_t seen : args.seen) {
    row[seen] =
        row[seen] > 0 ? row[seen] / args.repetition_penalty : row[seen] * args.repetition_penalty;
  }
  const std::vector<float> maxima = block_maxima(context, row, V);
  const int32_t best = first_largest(row, V, maxima);
  int32_t& result = *id.data<int32_t>();
  result = best;
  if (args.temperature <= 0) {
    return;
  }
  const float largest = row[best];
  const float scale = 1.0F / args.temperature;
  if (args.top_k > 0 && args.top_k < V) {
    std::vector<Candidate> candidates = largest_logits(row, V, maxima, args.top_k);
    for (Candidate& candidate : candidates) {
      candidate.value = std::exp((candidate.value - largest) * scale);
    }
    if (args.top_p < 1 && !candidates.empty()) {
      keep_nucleus(candidates, args.top_p);
    }
    result = candidates.empty() ? best : draw(std::move(candidates), args.uniform);
    return;
  }
  Weights weights{row, V, std::vector<float>(ceil_div(V, kSumBlock))};
  for_ranges(context, V, kTaskElements, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(WeightsOfLogits)
    (largest, scale, end - begin, kSumBlock, row + begin, weights.sums.data() + begin / kSumBlock);
  });
  if (args.top_p < 1) {
    keep_nucleus(context, weights, args.top_p);
  }
  result = draw(weights, args.uniform, best);
}

}  // namespace wick::cpu

#endif  // HWY_ONCE
