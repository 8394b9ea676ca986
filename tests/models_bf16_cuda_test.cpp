// Training in bf16 on a GPU, measured by PEFT's own bf16: both are compared with arithmetic that is
// exact to f32 on the same weights (bf16), adapters (f32) and ids, and wick may be no further off.
//
// tests/golden/<family>/bf16.safetensors holds how far PEFT was off (tools/record_bf16.py). What
// is compared are root mean squares over many sequences, since the error of one gradient is chance.
// With n independent samples a side, each with one degree of freedom at least, the ratio of two
// equal errors exceeds sqrt(F(n, n) at 99.9 %) once in a thousand: kChanceOf64, kChanceOf16. The
// mean ratio of all tensors of a model has some four times the samples: kChanceOfModel.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>

#include "tests/support/golden.h"
#include "tests/support/host_tensor.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"
#include "wick/train/optimizer.h"
#include "wick/train/step.h"

namespace wick {
namespace {

using test::golden_ids;
using test::to_host;

constexpr double kChanceOf64 = 1.48;  // sequences whose gradients are recorded
constexpr double kChanceOf16 = 2.3;   // runs whose losses are recorded
constexpr double kChanceOfModel = 1.2;
constexpr int kSteps = 10;

using Ids = std::vector<int32_t>;

bool has_device() {
  const auto names = backend_names();
  return std::find(names.begin(), names.end(), "cuda") != names.end();
}

double root_mean_square(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) {
    sum += value * value;
  }
  return std::sqrt(sum / static_cast<double>(values.size()));
}

double root_mean_square(const std::vector<float>& values) {
  return root_mean_square(std::vector<double>(values.begin(), values.end()));
}

MicroBatch all_tokens_of(std::span<const Ids> sequences) {
  MicroBatch batch;
  for (const Ids& ids : sequences) {
    batch.add({.ids = ids, .is_target = std::vector<uint8_t>(ids.size(), 1)});
  }
  return batch;
}

// A model with its adapter on one device.
class Trainee {
 public:
  Trainee(const char* device, const std::filesystem::path& model, const Adapter& adapter)
      : backend_(make_backend(device)),
        decoder_(open_decoder(*backend_, model)),
        attached_(attach(*backend_, decoder_->linears(), adapter, Trainable::yes)),
        start_(to_host(*backend_, attached_.values)) {}

  // [T, V], from all tokens at once.
  std::vector<float> logits(const Ids& ids) {
    const TokenBatch batch = make_token_batch(*backend_, {&ids, 1});
    return to_host(*backend_, decoder_->logits(decoder_->hidden(nullptr, batch, {}).value));
  }

  // The same from one token after the other, as a generator takes them.
  std::vector<float> decoded_logits(const Ids& ids) {
    KvCache cache = decoder_->make_cache(static_cast<int64_t>(ids.size()));
    std::vector<float> all;
    for (const int32_t id : ids) {
      const TokenBatch batch = make_next_batch(*backend_, {&id, 1}, cache.length());
      const Var hidden = decoder_->hidden(nullptr, batch, {}, &cache);
      const std::vector<float> row = to_host(*backend_, decoder_->logits(hidden.value));
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

  // Of the mean loss of one sequence, by the names of A and B.
  std::map<std::string, std::vector<float>> gradients(const Ids& ids) {
    const MicroBatch batch = all_tokens_of({&ids, 1});
    backend_->fill(0.0F, attached_.grads);
    Tape tape(*backend_);
    const Var states = decoder_->hidden(&tape, make_token_batch(*backend_, batch.inputs), {});
    decoder_->loss(&tape, states, {batch.target_rows, batch.targets},
                   1.0F / static_cast<float>(batch.targets.size()), {});
    tape.backward();
    std::map<std::string, std::vector<float>> result;
    for (const AttachedAdapter::Segment& segment : attached_.segments) {
      result[segment.name] = to_host(*backend_, attached_.grads.part(segment.begin, segment.shape));
    }
    return result;
  }

  // The losses of some steps on one batch, from the adapter as it was read.
  std::vector<double> train(std::span<const Ids> sequences) {
    backend_->upload(std::as_bytes(std::span(start_)), attached_.values);
    AdamW optimizer(*backend_, attached_.values, attached_.grads,
                    {{0, attached_.values.elements(), 1.0F, 0.01F}}, {.max_gradient_norm = 1.0F});
    Alone alone;
    TrainStep step(*decoder_, optimizer, 7, alone);
    const MicroBatch batch = all_tokens_of(sequences);
    std::vector<double> losses;
    for (int i = 0; i < kSteps; ++i) {
      const StepResult result = step.run({&batch, 1}, i + 1, 2e-4F, i);
      losses.push_back(result.loss_sum / static_cast<double>(result.target_tokens));
    }
    return losses;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  AttachedAdapter attached_;
  std::vector<float> start_;
};

// |value - exact| / |exact|, Frobenius.
double relative_error(const std::vector<float>& value, const std::vector<float>& exact) {
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(double{value[i]} - exact[i], 2);
    size += std::pow(double{exact[i]}, 2);
  }
  return std::sqrt(error / size);
}

class CudaBf16 : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_device()) {
      GTEST_SKIP() << "no CUDA device answers here";
    }
    const std::filesystem::path source = test::golden_folder(GetParam());
    const std::filesystem::path folder = temporary_.path() / "model";
    const auto cpu = make_backend("cpu");
    save_model_folder(folder, source, *open_decoder(*cpu, source), {.dtype = DType::bf16});
    const Adapter adapter = read_peft(source / "adapter");
    // The CPU computes in f32; tests/models_golden_test.cpp holds that to 1e-5 of PyTorch's
    // float64.
    exact_.emplace("cpu", folder, adapter);
    cuda_.emplace("cuda", folder, adapter);
    recorded_.emplace(source / "bf16.safetensors");
    const Ids all = golden_ids(*recorded_, "ids");
    const int64_t length = recorded_->shape("ids")[1];
    for (auto at = all.begin(); at != all.end(); at += length) {
      sequences_.emplace_back(at, at + length);
    }
  }

  test::TemporaryFolder temporary_;
  std::optional<Trainee> exact_;
  std::optional<Trainee> cuda_;
  std::optional<SafetensorsFile> recorded_;
  std::vector<Ids> sequences_;
};

TEST_P(CudaBf16, LogitsAreAsExactAsPefts) {
  std::vector<double> errors;
  std::vector<double> decoded_errors;
  for (const Ids& ids : sequences_) {
    const std::vector<float> exact = exact_->logits(ids);
    errors.push_back(relative_error(cuda_->logits(ids), exact));
    decoded_errors.push_back(relative_error(cuda_->decoded_logits(ids), exact));
  }
  const double pefts = root_mean_square(recorded_->floats("logit_errors"));
  EXPECT_LT(root_mean_square(errors) / pefts, kChanceOf64) << "PEFT is off by " << pefts;
  EXPECT_LT(root_mean_square(decoded_errors) / pefts, kChanceOf64) << "PEFT is off by " << pefts;
}

TEST_P(CudaBf16, GradientsAreAsExactAsPefts) {
  std::map<std::string, std::vector<double>> errors;
  for (const Ids& ids : sequences_) {
    const auto exact = exact_->gradients(ids);
    for (const auto& [name, gradient] : cuda_->gradients(ids)) {
      errors[name].push_back(relative_error(gradient, exact.at(name)));
    }
  }
  double log_ratios = 0;
  for (const auto& [name, ours] : errors) {
    const double pefts = root_mean_square(recorded_->floats("error." + name));
    const double ratio = root_mean_square(ours) / pefts;
    log_ratios += std::log(ratio);
    EXPECT_LT(ratio, kChanceOf64) << name << ": PEFT is off by " << pefts;
  }
  EXPECT_LT(std::exp(log_ratios / static_cast<double>(errors.size())), kChanceOfModel);
}

TEST_P(CudaBf16, TenTrainingStepsAreAsExactAsPefts) {
  const int64_t runs = recorded_->shape("loss_differences")[0];
  const auto count = sequences_.size() / static_cast<size_t>(runs);
  std::vector<double> differences;
  for (int64_t run = 0; run < runs; ++run) {
    const std::span batch = std::span(sequences_).subspan(static_cast<size_t>(run) * count, count);
    const std::vector<double> exact = exact_->train(batch);
    const std::vector<double> ours = cuda_->train(batch);
    for (int i = 0; i < kSteps; ++i) {
      differences.push_back(ours[i] / exact[i] - 1);
    }
  }
  const std::vector<float> recorded = recorded_->floats("loss_differences");
  const double pefts = root_mean_square(recorded);
  EXPECT_LT(root_mean_square(differences) / pefts, kChanceOf16)
      << "PEFT's losses are off by " << pefts;
}

INSTANTIATE_TEST_SUITE_P(Families, CudaBf16, testing::ValuesIn(test::kGoldenFamilies));

}  // namespace
}  // namespace wick
