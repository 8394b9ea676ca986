// One transformer block: attention and a gated MLP, each after an RMS norm and around a residual.
//
//     x1 = x + o_proj(attention(rope(q), rope(k), v)),  q, k, v from norm(x)
//     y  = x1 + down_proj(act(gate_proj(n)) * up_proj(n)),  n = norm(x1)
#pragma once

#include <optional>
#include <vector>

#include "wick/nn/kv_cache.h"
#include "wick/nn/linear_layer.h"
#include "wick/ops/norm.h"

namespace wick {

struct BlockShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t sliding_window = 0;  // 0: none
  float norm_eps = 1e-6F;
  Activation activation = Activation::silu;
};

// Of the batch that runs through all blocks.
struct BlockInputs {
  Tensor positions;   // i32 [T]
  Tensor spans;       // i32 [S, 4]
  Tensor rope_table;  // f32 [P, D]
};

// The residual stream between blocks: x + change, whose sum the next norm forms. An empty change
// stands for none.
struct Stream {
  Var x;
  Var change;
};

struct DecoderBlock {
  Parameter input_norm;
  LinearLayer q_proj, k_proj, v_proj, o_proj;
  std::optional<Parameter> q_norm, k_norm;  // [D], over each head
  Parameter post_norm;
  LinearLayer gate_proj, up_proj, down_proj;

  // [T, C] to [T, C]. With a cache the keys and values of the tokens are appended at their
  // positions, and attention reads the cache.
  Stream forward(Backend& backend, Tape* tape, Stream stream, const BlockShape& shape,
                 const BlockInputs& inputs, const StepContext& context,
                 const KvCache::Layer* cache) const;

  std::vector<LinearLayer*> linears();
  std::vector<Parameter*> parameters();
  bool trainable() const;
};

// The sum of the stream, and its norm.
SumAndNorm norm_of(Backend& backend, Tape* tape, Stream stream, const Parameter& weight, float eps);

}  // namespace wick
