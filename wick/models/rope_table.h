// The angles of the rotary position embedding (Su et al., 2021), with the stretched frequencies of
// long-context models.
#pragma once

#include <vector>

#include "wick/models/model_config.h"

namespace wick {

// [D/2]: radians a position, after scaling.
std::vector<double> rope_frequencies(const ModelConfig& config);

// [positions, D] row-major: cos of D/2 angles, then sin of the same.
std::vector<float> rope_table(const ModelConfig& config, int64_t positions);

}  // namespace wick
