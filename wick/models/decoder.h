// A decoder-only language model: Llama, Mistral, Qwen2 and Qwen3 by the flags of ModelConfig.
//
// Tokens of several sequences run end to end in one batch; attention never crosses a boundary and
// positions restart at each. Weights are found under their Hugging Face names and keep their stored
// type, or have the one that the back end's products take; norm weights are widened to f32, and so
// are biases unless activations have their type.
//
// Training, one micro-batch:
//     Tape tape(backend);
//     Var h = decoder.hidden(&tape, batch, context);
//     double sum = decoder.loss(&tape, h, {rows, ids}, 1.0F / targets_of_the_step, context);
//     tape.backward();          // adds to the gradients of all trainable parameters
// Generating: `hidden` with a KvCache, then `logits` of the last row.
//
// One thread at a time. The back end must outlive the decoder.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "wick/models/model_config.h"
#include "wick/models/token_batch.h"
#include "wick/nn/decoder_block.h"
#include "wick/nn/kv_cache.h"
#include "wick/nn/linear_layer.h"
#include "wick/ops/loss.h"

namespace wick {

class WeightSource;

// Row rows[i] of the batch is to predict ids[i].
struct LossTargets {
  std::span<const int32_t> rows;
  std::span<const int32_t> ids;
};

// Every trained weight in one flat arena, for an optimiser that steps it in one call.
struct FlatParameters {
  struct Segment {
    std::string name;
    int64_t begin = 0;
    Shape shape;
  };
  Tensor values;  // f32 [n]
  Tensor grads;   // f32 [n], zero at first
  std::vector<Segment> segments;
};

// The number type that a model's matrices are held in.
enum class HeldType : uint8_t {
  fastest,  // Backend::weight_type of the stored one
  stored    // exactly what was read, to be widened or written
};

class Decoder {
 public:
  // Throws Error naming the tensor that is missing or has another shape.
  Decoder(Backend& backend, ModelConfig config, const WeightSource& weights,
          HeldType held = HeldType::fastest);
  // Normal weights of deviation 0.02, norms 1, biases 0; f32.
  static std::unique_ptr<Decoder> random(Backend& backend, const ModelConfig& config,
                                         uint64_t seed);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The hidden states after the final norm, [T, C]. With a cache (no tape then), the batch
  // continues its sequence.
  Var hidden(Tape* tape, const TokenBatch& batch, const StepContext& context,
             KvCache* cache = nullptr);
  // The two halves of `hidden`, for work that a Recorder replays: what the host must check and
  // count for each batch, and the kernels alone.
  void begin(const TokenBatch& batch, KvCache* cache);
  Var run(Tape* tape, const TokenBatch& batch, const StepContext& context, KvCache* cache) const;
  // Rows of hidden states [n, C] to f32 [n, V].
  Tensor logits(const Tensor& hidden_rows) const;
  void write_logits(const Tensor& hidden_rows, const Tensor& logits) const;
  // The sum of the target rows' losses. With a tape, gradient_scale times the gradient of that sum
  // goes into the tape (of `hidden`) and into the head's parameters; without one, none is computed.
  double loss(Tape* tape, const Var& hidden, const LossTargets& targets, float gradient_scale,
              const StepContext& context) const;
  // The same in two halves, for a Recorder: the check, and the kernels alone, which write the loss
  // of each row.
  void check_targets(const LossTargets& targets, int64_t batch_rows) const;
  void write_losses(Tape* tape, const Var& hidden, const LossRows& targets,
                    const Tensor& gradient_scale, const StepContext& context,
                    const Tensor& losses) const;

  KvCache make_cache(int64_t capacity) const;
  // Keeps only each block's input for backward and runs the block again then.
  void set_checkpointing(bool on) { checkpointing_ = on; }

  // All linear layers, blocks in order, the head ("lm_head") last.
  std::vector<LinearLayer*> linears();
  // All weights; a tied head is listed once, as the embedding.
  std::vector<Parameter*> parameters();
  // Moves all weights into an arena of f32 and makes them trainable; a tied head stays tied.
  FlatParameters train_all_weights();
  // The head shares its weight with the embedding: false as well once either has been replaced.
  bool tied() const;
  const ModelConfig& config() const { return config_; }
  DType activation_type() const { return activation_type_; }
  // Of the products with its weights; medium if it is so for any.
  MatmulPrecision matmul_precision();
  Backend& backend() const { return backend_; }

 private:
  enum class WeightKind : uint8_t { matrix, norm, bias };
  using Load = std::function<Tensor(const std::string& name, const Shape& shape, WeightKind kind)>;
  Decoder(Backend& backend, ModelConfig config, const Load& load);
  void reserve_positions(int64_t positions);

  Backend& backend_;
  ModelConfig config_;
  Parameter embedding_;  // [V, C]
  std::vector<DecoderBlock> blocks_;
  std::vector<BlockShape> shapes_;  // of the blocks
  Parameter final_norm_;
  LinearLayer head_;
  Tensor rope_table_;                   // f32 [P, D], grown on demand
  std::vector<Tensor> retired_tables_;  // shorter ones, which recorded work may still read
  DType activation_type_ = DType::f32;
  bool checkpointing_ = false;
};

}  // namespace wick
