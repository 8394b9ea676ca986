// Scalars and structures that the kernels of backend.h take beside their tensors.
#pragma once

#include <cstdint>
#include <span>

#include "wick/core/tensor.h"

namespace wick {

// Which operand of a product is stored transposed: nt is x W^T (a linear layer), nn is dy W, tn is
// dy^T x.
enum class MatmulForm : uint8_t { nt, nn, tn };

struct MatmulArgs {
  MatmulForm form = MatmulForm::nt;
  bool accumulate = false;       // c += instead of c =
  const Tensor* bias = nullptr;  // [N], any weight dtype, added to every row
};

// One adapter of a linear layer: its change to the output is scaling * (x A^T) B^T.
struct LoraFactors {
  Tensor a;  // [R, in], f32
  Tensor b;  // [out, R], f32
  float scaling = 1.0F;
};

// Attention between token runs that are laid end to end. Row s of the i32 tensor [S, 4] is
// {q_begin, q_count, k_begin, k_count}: queries [q_begin, q_begin + q_count) see keys [k_begin,
// k_begin + k_count), and query i of the run stands at key position k_count - q_count + i.
struct AttentionArgs {
  bool causal = true;
  int64_t window = 0;  // > 0: a query sees itself and the window - 1 keys before it
  float scale = 1.0F;  // on q . k
};

enum class Activation : uint8_t { silu, gelu_tanh };

enum class RopeDirection : int8_t { forward = 1, inverse = -1 };

struct DropoutArgs {
  float probability = 0.0F;  // in [0, 1); what is kept is scaled by 1 / (1 - probability)
  uint64_t seed = 0;         // element i is kept if Random(seed, stream).uniform(i) >= probability
  uint64_t stream = 0;
};

struct CrossEntropyArgs {
  float gradient_scale = 1.0F;  // usually 1 / number of target tokens of the whole step
  bool gradient = false;        // replace the logits by their gradient
};

// A run of the parameter arena with its own decay and learning rate.
struct AdamwSegment {
  int64_t begin = 0;
  int64_t count = 0;
  float learning_rate = 0.0F;
  float weight_decay = 0.0F;
};

struct AdamwArgs {
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  int64_t step = 1;             // counts from 1, for bias correction
  float gradient_scale = 1.0F;  // multiplies every gradient first (clipping by global norm)
  std::span<const AdamwSegment> segments;
};

struct SampleArgs {
  float temperature = 0.0F;  // 0 is greedy: the first of the largest logits
  int32_t top_k = 0;         // 0: all
  float top_p =
      1.0F;  // keep the smallest set of most likely tokens whose probability reaches top_p
  float repetition_penalty = 1.0F;  // > 1 makes `seen` less likely (Keskar et al., 2019, CTRL)
  std::span<const int32_t> seen;    // distinct token ids, host memory
  float uniform = 0.0F;             // the random number in [0, 1) that decides
};

struct MemoryUse {
  size_t in_use_bytes = 0;
  size_t peak_bytes = 0;
};

}  // namespace wick
