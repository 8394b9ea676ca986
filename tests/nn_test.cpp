// Linear layers with their adapter slot, the KV cache, and the list of a block's weights.
#include <gtest/gtest.h>

#include "tests/support/host_tensor.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/nn/decoder_block.h"
#include "wick/nn/kv_cache.h"
#include "wick/nn/linear_layer.h"

namespace wick {
namespace {

using test::draw;
using test::to_device;
using test::to_host;
using Floats = std::vector<float>;

constexpr int64_t kTokens = 5, kIn = 8, kOut = 6, kRank = 2;

class LinearLayerTest : public testing::Test {
 protected:
  LinearLayer layer(float dropout, uint64_t stream) {
    LinearLayer result{
        "layer", {"layer.weight", to_device(*backend_, draw(kOut * kIn, 1), {kOut, kIn}), {}}};
    result.lora = LoraSlot{{"a", to_device(*backend_, draw(kRank * kIn, 2), {kRank, kIn}), {}},
                           {"b", to_device(*backend_, draw(kOut * kRank, 3), {kOut, kRank}), {}},
                           2.0F,
                           dropout,
                           stream};
    return result;
  }
  Tensor step(int32_t number) { return to_device(*backend_, std::vector{number}, {1}); }
  Floats run(const LinearLayer& layer, const StepContext& context) {
    return to_host(*backend_, layer.forward(*backend_, nullptr, x_, context).value);
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
  Var x_{to_device(*backend_, draw(kTokens* kIn, 4), {kTokens, kIn})};
};

TEST_F(LinearLayerTest, AnAdapterWhoseBIsZeroLeavesTheBase) {
  LinearLayer adapted = layer(0.0F, 0);
  backend_->fill(0.0F, adapted.lora->b.value);
  LinearLayer base = layer(0.0F, 0);
  base.lora.reset();
  EXPECT_EQ(run(adapted, {}), run(base, {}));
}

TEST_F(LinearLayerTest, DropoutIsForTrainingOnly) {
  EXPECT_EQ(run(layer(0.5F, 1), {}), run(layer(0.0F, 1), {}));
  EXPECT_NE(run(layer(0.5F, 1), {true, 0, step(0)}), run(layer(0.0F, 1), {}));
}

TEST_F(LinearLayerTest, DropoutIsAFunctionOfSeedLayerAndStep) {
  const StepContext context{true, 3, step(7)};
  const Floats first = run(layer(0.5F, 1), context);
  EXPECT_EQ(run(layer(0.5F, 1), context), first) << "a resumed run repeats it";
  EXPECT_NE(run(layer(0.5F, 1), {true, 3, step(8)}), first);
  EXPECT_NE(run(layer(0.5F, 1), {true, 4, step(7)}), first);
  EXPECT_NE(run(layer(0.5F, 2), context), first);
}

TEST_F(LinearLayerTest, IsTrainableByAnyOfItsParts) {
  LinearLayer frozen = layer(0.0F, 0);
  EXPECT_FALSE(frozen.trainable());
  LinearLayer adapter = layer(0.0F, 0);
  adapter.lora->a.grad = adapter.lora->a.value;
  EXPECT_TRUE(adapter.trainable());
  LinearLayer whole = layer(0.0F, 0);
  whole.weight.grad = whole.weight.value;
  EXPECT_TRUE(whole.trainable());
}

TEST(KvCacheTest, RefusesMoreTokensThanItHolds) {
  const auto backend = make_backend("cpu");
  KvCache cache(*backend, {.layers = 2, .capacity = 4, .kv_heads = 1, .head_dim = 8}, DType::f32);
  cache.advance(3);
  try {
    cache.advance(2);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "KV cache: 2 tokens after 3 exceed its capacity of 4");
  }
  EXPECT_EQ(cache.length(), 3);
  cache.truncate(1);
  cache.advance(3);
  EXPECT_EQ(cache.length(), 4);
}

TEST(DecoderBlockTest, ListsTheWeightsThatItHas) {
  DecoderBlock block;
  EXPECT_EQ(block.linears().size(), 7U);
  EXPECT_EQ(block.parameters().size(), 9U);
  block.q_proj.bias = Parameter{"q_proj.bias", {}, {}};
  block.q_norm = Parameter{"q_norm.weight", {}, {}};
  EXPECT_EQ(block.parameters().size(), 11U);
}

}  // namespace
}  // namespace wick
