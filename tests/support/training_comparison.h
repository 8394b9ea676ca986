// The same short training on the CPU and on a GPU: the same weights, adapter and batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/models/decoder.h"

namespace wick::test {

using Ids = std::vector<int32_t>;

// Every token but a sequence's first is a target. A step is one micro-batch.
struct Training {
  std::string name;
  float learning_rate = 0;              // of every step
  std::vector<std::vector<Ids>> steps;  // sequences of one length
  // For a recording only: compared with the GPU's f32, and nothing is expected.
  bool measured_only = false;
};

// What another source holds, rounded to bf16 and then held as `held`, bf16 or f32: the same numbers
// either way.
class Bf16Weights : public WeightSource {
 public:
  Bf16Weights(const WeightSource& source, DType held) : source_(source), held_(held) {}
  std::string description() const override { return source_.description(); }
  std::vector<std::string> names() const override { return source_.names(); }
  bool has(std::string_view name) const override { return source_.has(name); }
  WeightInfo info(std::string_view name) const override {
    return {source_.info(name).shape, held_};
  }

 private:
  Tensor read(Backend& backend, std::string_view name) const override;

  const WeightSource& source_;
  DType held_;
};

// A model on one device with a fresh adapter, as `wick train` makes it: rank 16 on every linear
// layer but the head.
class Trainee {
 public:
  Trainee(std::string_view device, const ModelConfig& config, const WeightSource& weights);

  // The mean loss before each step of AdamW, from the fresh adapter; `before_step` is called with
  // the number of each, from 0.
  std::vector<double> train(const Training& training,
                            const std::function<void(int64_t)>& before_step = {});
  // The mean loss of a step's batch with these values of the adapter.
  double loss(const std::vector<Ids>& sequences, const std::vector<float>& values);
  std::vector<float> values() const;

  Decoder& decoder() { return *decoder_; }
  Adapter adapter() const { return attached_.to_adapter(*backend_); }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  AttachedAdapter attached_;
  std::vector<float> start_;
};

// Trains on the CPU and in both number types on the GPU, and expects each loss of the GPU within
// 1e-5 (f32) and 1e-3 (bf16) of the CPU's, and that the training has lowered the loss by a tenth.
//
// Where the environment variable WICK_TRAINING_RECORDS names a folder, <folder>/<model> becomes a
// model folder (`source` has its config.json) with what tools/compare_bf16_training.py reads: the
// fresh adapter in `adapter` and each training in `trainings`, those that are `measured_only` too.
void expect_the_cpus_losses(const std::string& model, const std::filesystem::path& source,
                            const WeightSource& weights, const std::vector<Training>& trainings);
bool recording_trainings();

bool has_cuda_device();

}  // namespace wick::test
