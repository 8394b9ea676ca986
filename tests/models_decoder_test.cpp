// The laws of the decoder: packed = unpacked, cached = full, checkpointed = plain, and nothing kept
// or run below the lowest adapter.
#include "wick/models/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/support/host_tensor.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/models/rope_table.h"

namespace wick {
namespace {

using test::draw;
using test::relative_difference;
using test::to_device;
using test::to_host;
using Floats = std::vector<float>;
using Sequences = std::vector<std::vector<int32_t>>;

constexpr int64_t kRank = 4;

ModelConfig tiny_config() {
  ModelConfig config;
  config.family = "qwen3";
  config.vocab_size = 40;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.max_positions = 64;
  config.qkv_bias = true;
  config.qk_norm = true;
  return config;
}

class DecoderTest : public testing::Test {
 protected:
  // Random weights large enough that every part shows, biases and norms included.
  std::unique_ptr<Decoder> decoder(const ModelConfig& config) {
    std::unique_ptr<Decoder> result = Decoder::random(*backend_, config, 1);
    uint64_t stream = 0;
    for (Parameter* parameter : result->parameters()) {
      Floats values = draw(parameter->value.elements(), ++stream, 0.4F);
      if (parameter->name.find("norm") != std::string::npos) {
        for (float& value : values) {
          value += 1.0F;
        }
      }
      backend_->upload(std::as_bytes(std::span(values)), parameter->value);
    }
    return result;
  }
  Parameter trained(const std::string& name, const Floats& values, const Shape& shape) {
    Parameter parameter{name, to_device(*backend_, values, shape),
                        backend_->allocate(shape, DType::f32)};
    backend_->fill(0.0F, parameter.grad);
    return parameter;
  }
  void adapt(LinearLayer& layer, uint64_t stream, float dropout = 0.0F) {
    const Shape a{kRank, layer.in_features()};
    const Shape b{layer.out_features(), kRank};
    layer.lora = LoraSlot{trained(layer.name + ".a", draw(a.elements(), 1000 + stream, 0.3F), a),
                          trained(layer.name + ".b", draw(b.elements(), 2000 + stream, 0.3F), b),
                          0.5F, dropout, stream};
  }
  void adapt_all(Decoder& model, float dropout = 0.0F) {
    uint64_t stream = 0;
    for (LinearLayer* layer : model.linears()) {
      adapt(*layer, ++stream, dropout);
    }
  }
  // Of all adapters, one after the other; zeroed for the next pass.
  Floats take_gradients(Decoder& model) {
    Floats all;
    for (LinearLayer* layer : model.linears()) {
      for (const Parameter* half : {&layer->lora->a, &layer->lora->b}) {
        const Floats values = to_host(*backend_, half->grad);
        all.insert(all.end(), values.begin(), values.end());
        backend_->fill(0.0F, half->grad);
      }
    }
    return all;
  }
  // Each token but the first is a target. Returns the sum of losses; gradients are of that sum.
  double pass(Decoder& model, const Sequences& sequences, const StepContext& context = {}) {
    std::vector<int32_t> rows;
    std::vector<int32_t> targets;
    int32_t begin = 0;
    for (const std::vector<int32_t>& sequence : sequences) {
      for (size_t i = 0; i + 1 < sequence.size(); ++i) {
        rows.push_back(begin + static_cast<int32_t>(i));
        targets.push_back(sequence[i + 1]);
      }
      begin += static_cast<int32_t>(sequence.size());
    }
    Tape tape(*backend_);
    Var hidden = model.hidden(&tape, make_token_batch(*backend_, sequences), context);
    const double sum = model.loss(&tape, hidden, {rows, targets}, 1.0F, context);
    hidden = Var();
    tape.backward();
    return sum;
  }
  Floats logits(Decoder& model, const std::vector<int32_t>& ids) {
    const TokenBatch batch = make_token_batch(*backend_, std::span(&ids, 1));
    return to_host(*backend_, model.logits(model.hidden(nullptr, batch, {}).value));
  }
  std::string refusal(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

TEST_F(DecoderTest, PackedSequencesGiveTheLossAndGradientsOfEachAlone) {
  const std::unique_ptr<Decoder> model = decoder(tiny_config());
  adapt_all(*model);
  const Sequences sequences = {{5, 1, 2, 30, 7, 7, 2}, {9, 8}, {1, 2, 3, 4, 39, 0, 3, 2, 1}};
  double sum_alone = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    sum_alone += pass(*model, {sequence});
  }
  const Floats alone = take_gradients(*model);
  const double packed = pass(*model, sequences);
  EXPECT_NEAR(packed / sum_alone, 1.0, 1e-6);
  EXPECT_LT(relative_difference(take_gradients(*model), alone), 2e-5);
}

TEST_F(DecoderTest, CachedDecodeGivesTheLogitsOfAFullForward) {
  const std::vector<int32_t> ids = {3, 17, 9, 2, 2, 35, 0, 11, 4, 21};
  for (const int64_t window : {0, 3}) {
    ModelConfig config = tiny_config();
    config.sliding_window = window;
    config.windowed_layers = {true, false, true};
    const std::unique_ptr<Decoder> model = decoder(config);
    adapt_all(*model);
    const Floats full = logits(*model, ids);

    KvCache cache = model->make_cache(16);
    Floats cached;
    const std::span<const int32_t> all(ids);
    for (const auto& [begin, count] : {std::pair{0, 5}, {5, 2}, {7, 1}, {8, 1}, {9, 1}}) {
      const TokenBatch batch =
          make_next_batch(*backend_, all.subspan(begin, count), cache.length());
      const Floats part =
          to_host(*backend_, model->logits(model->hidden(nullptr, batch, {}, &cache).value));
      cached.insert(cached.end(), part.begin(), part.end());
    }
    EXPECT_LT(relative_difference(cached, full), 1e-5) << "window " << window;
  }
}

TEST_F(DecoderTest, CheckpointingGivesTheSameGradientsInLessMemory) {
  ModelConfig config = tiny_config();
  config.num_layers = 6;
  const std::unique_ptr<Decoder> model = decoder(config);
  adapt_all(*model, 0.3F);
  std::vector<int32_t> ids(60);
  std::iota(ids.begin(), ids.end(), 0);
  for (int32_t& id : ids) {
    id %= 40;
  }
  const StepContext context{true, 1, to_device(*backend_, std::vector{2}, {1})};
  const auto measure = [&](double& sum) {
    backend_->reset_peak_memory();
    const size_t before = backend_->memory().in_use_bytes;
    sum = pass(*model, {ids}, context);
    return backend_->memory().peak_bytes - before;
  };
  double plain_sum = 0;
  double checkpointed_sum = 0;
  const size_t plain_bytes = measure(plain_sum);
  const Floats plain = take_gradients(*model);
  model->set_checkpointing(true);
  const size_t checkpointed_bytes = measure(checkpointed_sum);
  EXPECT_EQ(checkpointed_sum, plain_sum);
  EXPECT_EQ(take_gradients(*model), plain);
  EXPECT_LT(checkpointed_bytes, plain_bytes / 2);
}

struct Kept {
  size_t steps;
  size_t bytes;
};

class MemoryTest : public DecoderTest {
 protected:
  // The back end may hand out blocks somewhat larger than asked for.
  static void expect_near(size_t actual, size_t expected) {
    EXPECT_NEAR(static_cast<double>(actual) / static_cast<double>(expected), 1.0, 0.1);
  }
  // What a forward pass leaves on the tape.
  Kept kept(Decoder& model, const std::vector<int32_t>& ids) {
    const TokenBatch batch = make_token_batch(*backend_, std::span(&ids, 1));
    model.hidden(nullptr, batch, {});  // makes the table of angles
    Tape tape(*backend_);
    const size_t before = backend_->memory().in_use_bytes;
    model.hidden(&tape, batch, {});
    return {tape.steps(), backend_->memory().in_use_bytes - before};
  }
};

TEST_F(MemoryTest, NothingIsKeptOrRunBelowTheLowestAdapter) {
  const std::vector<int32_t> ids(32, 7);
  std::vector<Kept> found;
  for (const int64_t layers : {1, 5}) {
    ModelConfig config = tiny_config();
    config.num_layers = layers;
    const std::unique_ptr<Decoder> model = decoder(config);
    adapt(*model->linears()[static_cast<size_t>(7 * (layers - 1))], 1);  // the last block's q_proj
    found.push_back(kept(*model, ids));
  }
  EXPECT_EQ(found[0].steps, found[1].steps);
  expect_near(found[1].bytes, found[0].bytes);
  // q_proj, its norm and rotation, attention, o_proj, both sums, the MLP's three products, its norm
  // and gate, the final norm.
  EXPECT_EQ(found[0].steps, 13U);
}

TEST_F(MemoryTest, ABaseWithoutAdapterKeepsNothing) {
  const std::unique_ptr<Decoder> model = decoder(tiny_config());
  const Kept found = kept(*model, std::vector<int32_t>(32, 7));
  EXPECT_EQ(found.steps, 0U);
  EXPECT_EQ(found.bytes, 0U);
}

TEST_F(MemoryTest, ALayerKeepsNoNormedInputAndNoGatedActivation) {
  constexpr int64_t kTokens = 64;
  const std::vector<int32_t> ids(kTokens, 7);
  std::vector<size_t> bytes;
  for (const int64_t layers : {2, 3}) {
    ModelConfig config = tiny_config();
    config.num_layers = layers;
    config.qk_norm = false;
    const std::unique_ptr<Decoder> model = decoder(config);
    adapt_all(*model);
    bytes.push_back(kept(*model, ids).bytes);
  }
  // Two residual inputs and their scales; q, o; k, v; the softmax's denominators; gate and up; x
  // A^T of seven layers.
  const ModelConfig c = tiny_config();
  const int64_t floats = 2 * c.hidden_size + 2 + 2 * c.num_heads * c.head_dim +
                         2 * c.num_kv_heads * c.head_dim + c.num_heads + 2 * c.intermediate_size +
                         7 * kRank;
  expect_near(bytes[1] - bytes[0], static_cast<size_t>(kTokens * floats) * sizeof(float));
}

TEST_F(DecoderTest, TrainingAllWeightsKeepsValuesNamesAndTheTiedHead) {
  ModelConfig config = tiny_config();
  config.tie_word_embeddings = true;
  const std::unique_ptr<Decoder> model = decoder(config);
  ASSERT_TRUE(model->tied());
  const Floats before = logits(*model, {1, 2, 3});
  const FlatParameters flat = model->train_all_weights();
  EXPECT_TRUE(model->tied());
  EXPECT_EQ(logits(*model, {1, 2, 3}), before);

  const std::vector<Parameter*> all = model->parameters();
  ASSERT_EQ(flat.segments.size(), all.size());
  int64_t count = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(flat.segments[i].name, all[i]->name);
    EXPECT_EQ(flat.segments[i].begin, count);
    EXPECT_TRUE(all[i]->trainable());
    EXPECT_NE(all[i]->name, "lm_head.weight");
    count += all[i]->value.elements();
  }
  EXPECT_EQ(flat.values.elements(), count);
  EXPECT_EQ(flat.grads.elements(), count);

  backend_->fill(0.0F, flat.values);  // the decoder reads the arena
  EXPECT_EQ(logits(*model, {1, 2, 3}), Floats(size_t{3} * 40, 0.0F));
}

TEST_F(DecoderTest, RandomWeightsFollowTheSeed) {
  const auto values = [&](uint64_t seed) {
    const std::unique_ptr<Decoder> model = Decoder::random(*backend_, tiny_config(), seed);
    Floats all;
    for (const Parameter* parameter : model->parameters()) {
      const Floats host = to_host(*backend_, parameter->value);
      all.insert(all.end(), host.begin(), host.end());
    }
    return all;
  };
  EXPECT_EQ(values(1), values(1));
  EXPECT_NE(values(1), values(2));
  const std::unique_ptr<Decoder> model = Decoder::random(*backend_, tiny_config(), 3);
  const Floats embedding = to_host(*backend_, model->parameters()[0]->value);
  const double squares =
      std::inner_product(embedding.begin(), embedding.end(), embedding.begin(), 0.0);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(embedding.size())), 0.02, 0.002);
  EXPECT_EQ(to_host(*backend_, model->parameters()[1]->value), Floats(16, 1.0F));
}

TEST_F(DecoderTest, RefusesWhatDoesNotFitTheModel) {
  const std::unique_ptr<Decoder> model = decoder(tiny_config());
  const auto run = [&](const Sequences& sequences, KvCache* cache = nullptr) {
    return refusal(
        [&] { model->hidden(nullptr, make_token_batch(*backend_, sequences), {}, cache); });
  };
  EXPECT_EQ(run({{1, 40}}), "decoder: token id 40 is outside the vocabulary of 40");
  EXPECT_EQ(run({{1}, {}}), "batch: sequence 1 is empty");
  EXPECT_EQ(run({{1, -5}}), "batch: token id -5 is negative");
  EXPECT_EQ(run({}), "batch: there is no sequence");
  EXPECT_EQ(run({std::vector<int32_t>(65, 1)}),
            "decoder: a sequence of 65 tokens is longer than the model's context of 64");
  KvCache cache = model->make_cache(4);
  EXPECT_EQ(run({{1}, {2}}, &cache), "decoder: a KV cache holds one sequence, not 2");
  EXPECT_EQ(run({{1, 2, 3, 4, 5}}, &cache), "KV cache: 5 tokens after 0 exceed its capacity of 4");
  cache.advance(2);
  EXPECT_EQ(run({{1}}, &cache), "decoder: the batch continues after 0 tokens, the cache holds 2");
  EXPECT_EQ(refusal([&] { model->make_cache(65); }),
            "decoder: a cache of 65 tokens is longer than the model's context of 64");

  const Var hidden{backend_->allocate({2, 16}, DType::f32)};
  const auto loss = [&](std::vector<int32_t> rows, std::vector<int32_t> ids) {
    return refusal([&] { model->loss(nullptr, hidden, {rows, ids}, 1.0F, {}); });
  };
  EXPECT_EQ(loss({2}, {1}), "loss: row 2 is outside the batch of 2");
  EXPECT_EQ(loss({1}, {40}), "loss: target id 40 is outside the vocabulary of 40");
  EXPECT_EQ(loss({0, 1}, {1}), "loss: 2 rows but 1 targets");
}

TEST_F(DecoderTest, ABatchWithoutTargetsHasNoLoss) {
  const std::unique_ptr<Decoder> model = decoder(tiny_config());
  EXPECT_EQ(model->loss(nullptr, Var{backend_->allocate({2, 16}, DType::f32)}, {}, 1.0F, {}), 0.0);
}

TEST(RopeTableTest, LinearScalingStretchesPositions) {
  ModelConfig config = tiny_config();
  const std::vector<float> plain = rope_table(config, 8);
  config.rope_scaling = {.kind = RopeScaling::Kind::linear, .factor = 4.0};
  const std::vector<float> scaled = rope_table(config, 32);
  for (int64_t p = 0; p < 8; ++p) {
    for (int64_t i = 0; i < config.head_dim; ++i) {
      EXPECT_NEAR(scaled[static_cast<size_t>(4 * p * config.head_dim + i)],
                  plain[static_cast<size_t>(p * config.head_dim + i)], 1e-6F);
    }
  }
}

TEST(RopeTableTest, Llama3ScalingKeepsShortWavesAndStretchesLongOnes) {
  ModelConfig config = tiny_config();
  config.head_dim = 16;
  config.rope_theta = 500000.0;
  const std::vector<double> plain = rope_frequencies(config);
  config.rope_scaling = {RopeScaling::Kind::llama3, 8.0, 1.0, 4.0, 8192};
  const std::vector<double> scaled = rope_frequencies(config);
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_DOUBLE_EQ(scaled.back(), plain.back() / 8.0);
  EXPECT_TRUE(std::is_sorted(scaled.rbegin(), scaled.rend()));
}

}  // namespace
}  // namespace wick
