// Recorded work at positions that had no angles yet when it was recorded: the bits of the same work
// unrecorded.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/host_tensor.h"
#include "tests/support/training_comparison.h"
#include "wick/backend/registry.h"
#include "wick/data/batcher.h"
#include "wick/lora/attach.h"
#include "wick/models/decoder.h"
#include "wick/train/step.h"

namespace wick {
namespace {

using test::to_host;

ModelConfig small_config() {
  ModelConfig config;
  config.family = "qwen2";
  config.vocab_size = 200;
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.max_positions = 2048;
  return config;
}

std::vector<int32_t> ids(int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(i * 37 % 200);
  }
  return ids;
}

class RecordedCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::has_cuda_device()) {
      GTEST_SKIP() << "no CUDA device answers here";
    }
    backend_ = make_backend("cuda");
    decoder_ = Decoder::random(*backend_, small_config(), 1);
    for (Parameter* parameter : decoder_->parameters()) {  // large enough that angles show
      if (parameter->value.shape().rank() == 2) {
        const std::vector<float> values = test::draw(parameter->value.elements(), ++stream_, 0.15F);
        backend_->upload(std::as_bytes(std::span(values)), parameter->value);
      }
    }
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  uint64_t stream_ = 0;
};

TEST_F(RecordedCuda, TokensPastTheFirstTableOfAngles) {
  constexpr int64_t kPrompt = 240;
  constexpr int64_t kTokens = 40;
  KvCache recorded_cache = decoder_->make_cache(kPrompt + kTokens);
  KvCache plain_cache = decoder_->make_cache(kPrompt + kTokens);
  for (KvCache* cache : {&recorded_cache, &plain_cache}) {
    decoder_->hidden(nullptr, make_next_batch(*backend_, ids(kPrompt), 0), {}, cache);
  }
  TokenBatch token = allocate_token_batch(*backend_, 1, 1);
  const Tensor logits = backend_->allocate({1, decoder_->config().vocab_size}, DType::f32);
  const auto recorder = backend_->make_recorder();
  for (int32_t i = 0; i < kTokens; ++i) {
    set_next_token(*backend_, i, recorded_cache.length(), token);
    decoder_->begin(token, &recorded_cache);
    recorder->run(0, [&] {
      decoder_->write_logits(decoder_->run(nullptr, token, {}, &recorded_cache).value, logits);
    });
    const std::vector<float> recorded = to_host(*backend_, logits);
    decoder_->write_logits(decoder_->hidden(nullptr, token, {}, &plain_cache).value, logits);
    const std::vector<float> plain = to_host(*backend_, logits);
    ASSERT_EQ(std::memcmp(recorded.data(), plain.data(), plain.size() * sizeof(float)), 0)
        << "token " << i << ", " << recorded[0] << " for " << plain[0];
  }
}

TEST_F(RecordedCuda, TrainingStepsOnLongerSequencesOfAsManyTokens) {
  AdapterConfig config;
  config.rank = 4;
  config.target_modules = ModuleSelection::all_linear();
  const AttachedAdapter adapter = attach_new(*backend_, decoder_->linears(), config, 5);
  const auto batch_of = [](int64_t sequences, int64_t length) {
    MicroBatch batch;
    for (int64_t i = 0; i < sequences; ++i) {
      batch.add(
          {.ids = ids(length), .is_target = std::vector<uint8_t>(static_cast<size_t>(length), 1)});
    }
    return batch;
  };
  Alone alone;
  AdamW optimizer(*backend_, adapter.values, adapter.grads,
                  {{0, adapter.values.elements(), 1.0F, 0.0F}}, {});
  const auto loss = [&](TrainStep& step, const MicroBatch& batch, int64_t number) {
    return step.run(std::vector<MicroBatch>{batch}, number, 0.0F, 0).loss_sum;
  };
  TrainStep recorded(*decoder_, optimizer, 7, alone);
  const MicroBatch parts = batch_of(4, 160);
  for (int64_t i = 1; i <= 3; ++i) {  // recorded, and replayed
    loss(recorded, parts, i);
  }
  for (const auto& [sequences, length] : {std::pair<int64_t, int64_t>{2, 320}, {1, 637}}) {
    const MicroBatch batch = batch_of(sequences, length);
    TrainStep fresh(*decoder_, optimizer, 7, alone);
    EXPECT_EQ(loss(recorded, batch, 4), loss(fresh, batch, 4)) << length << " tokens";
  }
}

}  // namespace
}  // namespace wick
