// Rotary position embedding, and attention between token runs laid end to end.
#pragma once

#include "wick/autograd/tape.h"

namespace wick {

struct RopeInputs {
  const Tensor& positions;  // i32 [T]
  const Tensor& table;      // f32 [P, R], see Backend::rope
};

// x [T, H, D]. Pass the only handle of x to have it done in place.
Var rope(Backend& backend, Tape* tape, Var x, const RopeInputs& inputs);

// Softmax attention of q [T, H, D] over k and v [Tk, G, D], head h using key head h / (H / G).
// Backward needs spans that share no keys.
Var attention(Backend& backend, Tape* tape, const Var& q, const Var& k, const Var& v,
              const Tensor& spans, const AttentionArgs& args);

// rope of q and k at their positions, k and v appended to the caches [P, G, D], and attention of q
// over these: for inference. q and k may be overwritten.
Var append_attention(Backend& backend, const FreshTokens& tokens, const Tensor& k_cache,
                     const Tensor& v_cache, const Tensor& spans, const AttentionArgs& args);

}  // namespace wick
