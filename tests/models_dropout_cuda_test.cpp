// Training with dropout on a GPU against the CPU: both drop the same values, since what is dropped
// is a function of the seed, the layer and the step.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/training_comparison.h"
#include "wick/backend/registry.h"
#include "wick/data/batcher.h"
#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

using test::to_host;

constexpr double kDropout = 0.4;
constexpr uint64_t kSeed = 7;

struct Outputs {
  double loss = 0;
  std::map<std::string, std::vector<float>> gradients;  // of each A and B
};

// Of one sequence, all of whose tokens are learnt.
Outputs outputs_of(const char* device, const std::string& family, DType weights, double dropout) {
  const std::filesystem::path folder = test::golden_folder(family);
  const auto backend = make_backend(device);
  const auto source = open_weights(folder);
  Decoder decoder(*backend, parse_model_config(folder / "config.json"),
                  test::Bf16Weights(*source, weights));
  Adapter adapter = read_peft(folder / "adapter");
  adapter.config.dropout = dropout;
  const AttachedAdapter attached = attach(*backend, decoder.linears(), adapter, Trainable::yes);
  MicroBatch batch;
  const std::vector<int32_t> ids =
      test::golden_ids(SafetensorsFile(folder / "golden.safetensors"), "ids.0");
  batch.add({.ids = ids, .is_target = std::vector<uint8_t>(ids.size(), 1)});

  const StepContext context{true, kSeed, upload_ids(*backend, std::vector<int32_t>{3}, {1})};
  Tape tape(*backend);
  const Var states = decoder.hidden(&tape, make_token_batch(*backend, batch.inputs), context);
  const auto targets = static_cast<double>(batch.targets.size());
  Outputs outputs;
  outputs.loss = decoder.loss(&tape, states, {batch.target_rows, batch.targets},
                              static_cast<float>(1 / targets), context) /
                 targets;
  tape.backward();
  for (const AttachedAdapter::Segment& segment : attached.segments) {
    outputs.gradients[segment.name] =
        to_host(*backend, attached.grads.part(segment.begin, segment.shape));
  }
  return outputs;
}

class CudaDropout : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!test::has_cuda_device()) {
      GTEST_SKIP() << "no CUDA device answers here";
    }
  }
};

TEST_P(CudaDropout, GivesTheLossAndGradientsOfTheCpu) {
  const Outputs cpu = outputs_of("cpu", GetParam(), DType::f32, kDropout);
  const Outputs cuda = outputs_of("cuda", GetParam(), DType::f32, kDropout);
  EXPECT_NEAR(cuda.loss / cpu.loss, 1.0, 1e-5);
  for (const auto& [name, gradient] : cuda.gradients) {
    EXPECT_LT(test::relative_difference(gradient, cpu.gradients.at(name)), 1e-4) << name;
  }
  EXPECT_GT(std::abs(outputs_of("cpu", GetParam(), DType::f32, 0).loss / cpu.loss - 1), 1e-4)
      << "nothing was dropped";
}

// Single values may be off by a fifth of the largest: see docs/performance.md, "What bf16 costs".
TEST_P(CudaDropout, GivesThemInBf16AsFarAsItGoes) {
  if (GetParam() == "mistral") {
    GTEST_SKIP() << "some of its gradients are all rounding in bf16";
  }
  const Outputs cpu = outputs_of("cpu", GetParam(), DType::bf16, kDropout);
  const Outputs cuda = outputs_of("cuda", GetParam(), DType::bf16, kDropout);
  EXPECT_NEAR(cuda.loss / cpu.loss, 1.0, 5e-3);
  for (const auto& [name, gradient] : cuda.gradients) {
    EXPECT_LT(test::relative_difference(gradient, cpu.gradients.at(name)), 0.2) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaDropout, testing::ValuesIn(test::kGoldenFamilies));

}  // namespace
}  // namespace wick
