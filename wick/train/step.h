// One training step: forward and backward passes of its micro-batches, then the optimiser.
//
// Several processes share the micro-batches (see data/share.h), sum their gradients, and then all
// take the same step of the optimiser.
//
// Where the back end can record (see Recorder), batches are padded to a few sizes, so that later
// steps replay what earlier ones asked for: the padding is a run of its own, which nothing else
// sees and which has no target. Everything that changes from step to step lies in tensors.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "wick/core/communicator.h"
#include "wick/data/share.h"
#include "wick/models/decoder.h"
#include "wick/train/optimizer.h"

namespace wick {

// Of all processes together.
struct StepResult {
  double loss_sum = 0;  // nats, over all target tokens
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  double gradient_norm = 0;  // before clipping
};

class TrainStep {
 public:
  // Dropout draws from `seed`. All that is passed must outlive the object.
  TrainStep(Decoder& decoder, AdamW& optimizer, uint64_t seed, Communicator& ranks);

  // Steps the optimiser by the gradient of the mean loss over the target tokens of all the
  // micro-batches together, so that it does not matter how a step is split into them. `step` counts
  // from 1; micro-batch i has the number `first_micro_batch + i` in the run. Where the loss or the
  // gradient is not finite the result says so; nothing is updated by a gradient that is not. All
  // processes are given the whole step.
  StepResult run(std::span<const MicroBatch> batches, int64_t step, float learning_rate,
                 int64_t first_micro_batch);

  // `run` in two halves: the work is asked for, and its result awaited. Where the step runs ahead,
  // one more may begin before the first is finished, so that a device has work while the host reads
  // the loss. Results come in the order of the steps.
  void begin(std::span<const MicroBatch> batches, int64_t step, float learning_rate,
             int64_t first_micro_batch);
  StepResult finish();
  // False on the CPU, and among several processes: the sum of their gradients is awaited anyhow.
  bool runs_ahead() const { return alone() && begun_.front().readback->runs_behind(); }

 private:
  struct Begun {
    StepResult result;  // what is known before the device is done
    std::unique_ptr<Readback> readback;
  };
  struct Sizes {
    int64_t tokens, runs, targets;
    bool operator<(const Sizes& other) const {
      return std::tie(tokens, runs, targets) < std::tie(other.tokens, other.runs, other.targets);
    }
  };
  // The inputs of micro-batches of one size, where a recorded step reads them.
  struct Inputs {
    TokenBatch tokens;
    LossRows targets;
    Tensor losses;    // f32 [targets]
    uint64_t id = 0;  // names these sizes to the recorder
  };

  Sizes sizes_of(const HostBatch& batch, const MicroBatch& micro_batch) const;
  Inputs& inputs_of(const Sizes& sizes);
  void upload_inputs(HostBatch host, const MicroBatch& batch, const Sizes& sizes, Inputs& inputs);
  bool alone() const { return ranks_.place().size == 1; }
  void run_passes(std::span<const StepPart> parts, int64_t first_micro_batch);
  void begin_passes();
  void forward_and_backward(const Inputs& inputs);
  void update() { optimizer_.update(results_.part(1, {1})); }

  Decoder& decoder_;
  Backend& backend_;
  AdamW& optimizer_;
  uint64_t seed_;
  Communicator& ranks_;
  Tensor micro_batch_;          // i32 [1], its number: what dropout draws by
  Tensor gradient_scale_;       // f32 [1]
  Tensor results_;              // f32 [2]: sum of losses, sum of squares of the gradient
  std::array<Begun, 2> begun_;  // the steps of even and of odd `begins_` and `finishes_`
  uint64_t begins_ = 0;
  uint64_t finishes_ = 0;
  std::map<Sizes, Inputs> inputs_;
  std::unique_ptr<Recorder> recorder_;  // last: its recordings read all of the above
};

}  // namespace wick
