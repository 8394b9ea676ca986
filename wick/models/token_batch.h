// Tokens of one or more sequences as a back end wants them: laid end to end, with the runs that
// attention keeps apart.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wick/core/backend.h"

namespace wick {

struct TokenBatch {
  Tensor all;                // i32 [2 T + 4 S]: the three below, which come in one upload
  Tensor ids;                // i32 [T]
  Tensor positions;          // i32 [T]
  Tensor spans;              // i32 [S, 4], see AttentionArgs
  int64_t past = 0;          // tokens that a cache already holds
  int64_t end_position = 0;  // one past the largest position
  int32_t largest_id = 0;
  int64_t tokens() const { return ids.elements(); }
};

// The same while it is still on the host.
struct HostBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> spans;  // four numbers a run
  int64_t end_position = 0;
  int32_t largest_id = 0;

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t runs() const { return static_cast<int64_t>(spans.size()) / 4; }
  // Adds tokens of id 0, in a run of their own, and empty runs, up to the given numbers.
  void pad(int64_t tokens, int64_t runs);
};
// Throws Error if there is no sequence, one is empty, or an id is negative.
HostBatch lay_out(std::span<const std::vector<int32_t>> sequences);

// Room for a batch of so many tokens and runs, and what fills it.
TokenBatch allocate_token_batch(Backend& backend, int64_t tokens, int64_t runs);
void upload(Backend& backend, const HostBatch& host, TokenBatch& batch);

TokenBatch make_token_batch(Backend& backend, std::span<const std::vector<int32_t>> sequences);
// The next tokens of the one sequence whose first `past` tokens a KvCache holds.
TokenBatch make_next_batch(Backend& backend, std::span<const int32_t> ids, int64_t past);

// The same for one token, in a batch that allocate_token_batch(backend, 1, 1) made.
void set_next_token(Backend& backend, int32_t id, int64_t past, TokenBatch& batch);

// All but the ids of the next `count` tokens, one by one, after `past` others: i32 [count, 5].
Tensor lay_out_places(Backend& backend, int64_t past, int64_t count);
// The same as set_next_token for the place of one token, i32 [5], and an id of the model's
// vocabulary that is in batch.ids, though the host need not have seen it yet.
void set_next_place(Backend& backend, const Tensor& place, int64_t past, TokenBatch& batch);

// Host values to an i32 tensor.
Tensor upload_ids(Backend& backend, std::span<const int32_t> values, const Shape& shape);

}  // namespace wick
