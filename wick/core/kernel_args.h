// Scalars and structures that the kernels of backend.h take beside their tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "wick/core/tensor.h"

namespace wick {

// What a product with bf16 weights may do to its other operand, in the terms of PyTorch's
// set_float32_matmul_precision. highest: nothing, all arithmetic is f32. medium: it is rounded to
// bf16 where there are more than a few rows; the sums stay f32.
enum class MatmulPrecision : uint8_t { highest, medium };

constexpr std::string_view name_of(MatmulPrecision precision) {
  return precision == MatmulPrecision::medium ? "medium" : "highest";
}

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
  Tensor a;  // [R, in], f32, or of Backend::adapter_type where it is not trained
  Tensor b;  // [out, R], as a
  float scaling = 1.0F;
};

// What the gradients of a frozen layer with an adapter are made of.
struct LoraLinearInputs {
  Tensor x;       // [T, K]
  Tensor s;       // [T, R], of the forward pass
  Tensor dy;      // [T, N]
  Tensor weight;  // [N, K]
  LoraFactors adapter;
};

// One of several linear layers that read the same input.
struct LinearTerm {
  Tensor weight;                          // [N, K]
  Tensor bias;                            // [N]; empty: none
  std::span<const LoraFactors> adapters;  // empty: none
  Tensor row_adapter;                     // as of lora_forward
  Tensor s;                               // [T, R_max]; empty where there is no adapter
  Tensor y;                               // [T, N]
};

// The input x of linear layers that is a norm: x = rms_norm(sum), sum = a + b.
struct NormedInput {
  Tensor a;       // [T, K]
  Tensor b;       // [T, K]; empty: the sum is a
  Tensor weight;  // [K]
  float eps = 0.0F;
  Tensor sum;  // [T, K], neither a nor b; empty where b is
  Tensor x;    // [T, K]; may be left unwritten
};

// A run of tokens whose keys and values are not yet in the cache.
struct FreshTokens {
  Tensor positions;   // i32 [T]: their rows of the cache
  Tensor rope_table;  // f32 [P, R]
  Tensor q, k, v;     // [T, H, D], [T, G, D] twice; q and k may be overwritten
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

// Numbers that change from step to step are tensors, so that a recorded step (see Recorder) reads
// the new ones when it is replayed.

// Element i is kept if Random(seed, mask_stream(seed, stream, step)).uniform(i) >= probability, and
// then scaled by 1 / (1 - probability).
struct DropoutArgs {
  float probability = 0.0F;  // in [0, 1); 0: none
  uint64_t seed = 0;
  uint64_t stream = 0;
  Tensor step;  // i32 [1]; no two forward passes of a run share one
};

struct CrossEntropyArgs {
  Tensor gradient_scale;  // f32 [1], usually 1 / number of target tokens of the whole step;
                          // empty: the gradient is not wanted
};

// A run of the parameter arena with its own decay and learning rate.
struct AdamwSegment {
  int64_t begin = 0;
  int64_t count = 0;
  float learning_rate_ratio = 1.0F;  // times the step's learning rate
  float weight_decay = 0.0F;
};

struct AdamwArgs {
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  float max_gradient_norm = 0.0F;  // > 0: longer gradients are scaled to this norm
  Tensor square_sum;               // f32 [1]: the sum of squares of the whole gradient
  Tensor schedule;                 // f32 [3]: learning rate, 1 / (1 - b1^t), 1 / (1 - b2^t)
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
