// Tokens of one or more sequences as a back end wants them: laid end to end, with the runs that
// attention keeps apart.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

struct TokenBatch {
  Tensor ids;                // i32 [T]
  Tensor positions;          // i32 [T]
  Tensor spans;              // i32 [S, 4], see AttentionArgs
  int64_t past = 0;          // tokens that a cache already holds
  int64_t end_position = 0;  // one past the largest position
  int32_t largest_id = 0;
  int64_t tokens() const { return ids.elements(); }
};

// Throws Error if there is no sequence, one is empty, or an id is negative.
TokenBatch make_token_batch(Backend& backend, std::span<const std::vector<int32_t>> sequences);
// The next tokens of the one sequence whose first `past` tokens a KvCache holds.
TokenBatch make_next_batch(Backend& backend, std::span<const int32_t> ids, int64_t past);

// Host values to an i32 tensor.
Tensor upload_ids(Backend& backend, std::span<const int32_t> values, const Shape& shape);

}  // namespace wick
