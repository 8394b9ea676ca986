// Frequencies in double precision; only the finished cosines and sines are rounded.
#include "wick/models/rope_table.h"

#include <cmath>
#include <numbers>

namespace wick {
namespace {

// Llama 3.1: long waves are stretched by the factor, short ones stay, and between the two the
// frequency is blended.
double llama3_frequency(double frequency, const RopeScaling& scaling) {
  const double waves =
      static_cast<double>(scaling.original_positions) * frequency / (2.0 * std::numbers::pi);
  if (waves < scaling.low_freq_factor) {
    return frequency / scaling.factor;
  }
  if (waves > scaling.high_freq_factor) {
    return frequency;
  }
  const double blend =
      (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1.0 - blend) * frequency / scaling.factor + blend * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config) {
  const int64_t half = config.head_dim / 2;
  std::vector<double> frequencies(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    double frequency =
        std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(half));
    switch (config.rope_scaling.kind) {
      case RopeScaling::Kind::none:
        break;
      case RopeScaling::Kind::linear:
        frequency /= config.rope_scaling.factor;
        break;
      case RopeScaling::Kind::llama3:
        frequency = llama3_frequency(frequency, config.rope_scaling);
        break;
    }
    frequencies[static_cast<size_t>(i)] = frequency;
  }
  return frequencies;
}

std::vector<float> rope_table(const ModelConfig& config, int64_t positions) {
  const std::vector<double> frequencies = rope_frequencies(config);
  std::vector<float> table;
  table.reserve(static_cast<size_t>(positions * config.head_dim));
  for (int64_t p = 0; p < positions; ++p) {
    for (const double frequency : frequencies) {
      table.push_back(static_cast<float>(std::cos(static_cast<double>(p) * frequency)));
    }
    for (const double frequency : frequencies) {
      table.push_back(static_cast<float>(std::sin(static_cast<double>(p) * frequency)));
    }
  }
  return table;
}

}  // namespace wick
