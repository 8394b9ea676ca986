// Short trainings, their comparison and their recording.
#include "tests/support/training_comparison.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <span>

#include "tests/support/host_tensor.h"
#include "wick/backend/registry.h"
#include "wick/io/safetensors.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"
#include "wick/train/optimizer.h"
#include "wick/train/step.h"

namespace wick::test {
namespace {

// Relative to the loss. No less exact than this is what users were promised.
constexpr double kF32Tolerance = 1e-5;
constexpr double kBf16Tolerance = 1e-3;
constexpr double kLeastFall = 0.1;

struct Losses {
  std::vector<double> cpu;  // empty: measured only
  std::vector<double> cuda_f32;
  std::vector<double> cuda_bf16;
  // Of the adapters that the bf16 training went through, by f32: what is left of the difference
  // when each loss is computed exactly.
  std::vector<double> path;
};

MicroBatch micro_batch_of(const std::vector<Ids>& sequences) {
  MicroBatch batch;
  for (const Ids& ids : sequences) {
    batch.add({.ids = ids, .is_target = std::vector<uint8_t>(ids.size(), 1)});
  }
  return batch;
}

std::filesystem::path records_folder() {
  const char* folder = std::getenv("WICK_TRAINING_RECORDS");
  return folder == nullptr ? "" : folder;
}

void record_training(const std::filesystem::path& file, const Training& training,
                     const Losses& losses) {
  std::vector<int32_t> ids;
  for (const std::vector<Ids>& step : training.steps) {
    for (const Ids& sequence : step) {
      ids.insert(ids.end(), sequence.begin(), sequence.end());
    }
  }
  const auto steps = static_cast<int64_t>(training.steps.size());
  const auto sequences = static_cast<int64_t>(training.steps.front().size());
  const auto length = static_cast<int64_t>(training.steps.front().front().size());
  std::vector<SafetensorsItem> items;
  items.push_back(
      {"ids", DType::i32, Shape{steps, sequences, length}, [&](std::span<std::byte> to) {
         std::ranges::copy(std::as_bytes(std::span(ids)), to.begin());
       }});
  // As text: their differences need more digits than an f32 has.
  const std::array<std::pair<const char*, const std::vector<double>*>, 4> all = {
      {{"cpu", &losses.cpu},
       {"cuda_f32", &losses.cuda_f32},
       {"cuda_bf16", &losses.cuda_bf16},
       {"path", &losses.path}}};
  SafetensorsMetadata metadata;
  metadata["learning_rate"] = fmt::format("{}", training.learning_rate);
  for (const auto& [name, values] : all) {
    metadata[name] = fmt::format("{:.12g}", fmt::join(*values, " "));
  }
  write_safetensors(file, std::move(items), metadata);
}

void expect_near(const std::vector<double>& losses, const std::vector<double>& exact,
                 double tolerance, const char* what) {
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(losses[i] / exact[i], 1.0, tolerance) << what << ", step " << i + 1;
  }
}

}  // namespace

Tensor Bf16Weights::read(Backend& backend, std::string_view name) const {
  Tensor tensor = source_.load(backend, name, source_.info(name).shape);
  for (const DType type : {DType::bf16, held_}) {
    if (tensor.dtype() != type) {
      const Tensor other = backend.allocate(tensor.shape(), type);
      backend.cast(tensor, other);
      tensor = other;
    }
  }
  return tensor;
}

Trainee::Trainee(std::string_view device, const ModelConfig& config, const WeightSource& weights)
    : backend_(make_backend(device)),
      decoder_(std::make_unique<Decoder>(*backend_, config, weights)),
      attached_(attach_new(
          *backend_, decoder_->linears(),
          {.rank = 16, .alpha = 32, .target_modules = ModuleSelection::all_linear()}, 0)),
      start_(values()) {}

std::vector<double> Trainee::train(const Training& training,
                                   const std::function<void(int64_t)>& before_step) {
  backend_->upload(std::as_bytes(std::span(start_)), attached_.values);
  AdamW optimizer(*backend_, attached_.values, attached_.grads,
                  {{0, attached_.values.elements(), 1.0F, 0.01F}}, {.max_gradient_norm = 1.0F});
  Alone alone;
  TrainStep step(*decoder_, optimizer, 0, alone);
  std::vector<double> losses;
  for (const std::vector<Ids>& sequences : training.steps) {
    const auto number = static_cast<int64_t>(losses.size());
    if (before_step) {
      before_step(number);
    }
    const MicroBatch batch = micro_batch_of(sequences);
    const StepResult result = step.run({&batch, 1}, number + 1, training.learning_rate, number);
    losses.push_back(result.loss_sum / static_cast<double>(result.target_tokens));
  }
  backend_->upload(std::as_bytes(std::span(start_)), attached_.values);
  return losses;
}

double Trainee::loss(const std::vector<Ids>& sequences, const std::vector<float>& values) {
  backend_->upload(std::as_bytes(std::span(values)), attached_.values);
  const MicroBatch batch = micro_batch_of(sequences);
  const Var states = decoder_->hidden(nullptr, make_token_batch(*backend_, batch.inputs), {});
  const double sum = decoder_->loss(nullptr, states, {batch.target_rows, batch.targets}, 0.0F, {});
  return sum / static_cast<double>(batch.targets.size());
}

std::vector<float> Trainee::values() const {
  return to_host(*backend_, attached_.values);
}

void expect_the_cpus_losses(const std::string& model, const std::filesystem::path& source,
                            const WeightSource& weights, const std::vector<Training>& trainings) {
  const ModelConfig config = parse_model_config(source / "config.json");
  std::vector<Losses> all(trainings.size());
  {
    Trainee cpu("cpu", config, Bf16Weights(weights, DType::bf16));
    for (size_t i = 0; i < trainings.size(); ++i) {
      if (!trainings[i].measured_only) {
        all[i].cpu = cpu.train(trainings[i]);
      }
    }
  }
  Trainee f32("cuda", config, Bf16Weights(weights, DType::f32));
  Trainee bf16("cuda", config, Bf16Weights(weights, DType::bf16));
  for (size_t i = 0; i < trainings.size(); ++i) {
    const Training& training = trainings[i];
    SCOPED_TRACE(model + " " + training.name);
    Losses& losses = all[i];
    losses.cuda_f32 = f32.train(training);
    losses.cuda_bf16 = bf16.train(training, [&](int64_t step) {
      if (recording_trainings()) {
        losses.path.push_back(f32.loss(training.steps[static_cast<size_t>(step)], bf16.values()));
      }
    });
    if (training.measured_only) {
      continue;
    }
    expect_near(losses.cuda_f32, losses.cpu, kF32Tolerance, "f32");
    expect_near(losses.cuda_bf16, losses.cpu, kBf16Tolerance, "bf16");
    EXPECT_LT(losses.cpu.back(), (1 - kLeastFall) * losses.cpu.front()) << "hardly learns";
  }
  if (recording_trainings()) {
    const std::filesystem::path folder = records_folder() / model;
    save_model_folder(folder, source, bf16.decoder(), {.dtype = DType::bf16});
    write_peft(folder / "adapter", bf16.adapter());
    std::filesystem::create_directories(folder / "trainings");
    for (size_t i = 0; i < trainings.size(); ++i) {
      record_training(folder / "trainings" / (trainings[i].name + ".safetensors"), trainings[i],
                      all[i]);
    }
  }
}

bool recording_trainings() {
  return !records_folder().empty();
}

bool has_cuda_device() {
  const auto names = backend_names();
  return std::find(names.begin(), names.end(), "cuda") != names.end();
}

}  // namespace wick::test
