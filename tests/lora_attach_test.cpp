// Attaching new and loaded adapters to layers, and merging.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/host_tensor.h"
#include "tests/support/message_of.h"
#include "wick/backend/registry.h"
#include "wick/base/log.h"
#include "wick/lora/attach.h"
#include "wick/lora/merge.h"

namespace wick {
namespace {

using test::message_of;
using test::to_device;
using test::to_host;

// Two blocks of two layers and a head; no two layers of a block have one shape.
class Attach : public testing::Test {
 protected:
  void SetUp() override {
    config_.rank = 2;
    config_.alpha = 4;
    config_.target_modules = ModuleSelection::all_linear();
    for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
      add(block + "self_attn.q_proj", 6, 4);
      add(block + "mlp.down_proj", 4, 10);
    }
    add("lm_head", 8, 4);
    for (LinearLayer& layer : storage_) {
      layers_.push_back(&layer);
    }
  }
  void add(const std::string& name, int64_t out, int64_t in) {
    storage_.push_back({.name = name, .weight = {name + ".weight", weight(out, in, DType::f32)}});
  }
  Tensor weight(int64_t out, int64_t in, DType dtype) {
    const Tensor values = to_device(*backend_, test::draw(out * in, storage_.size()), {out, in});
    Tensor stored = backend_->allocate({out, in}, dtype);
    backend_->cast(values, stored);
    return stored;
  }
  AttachedAdapter attach_config(uint64_t seed = 1) {
    return attach_new(*backend_, layers_, config_, seed);
  }
  // A loaded adapter on both q_proj, with A and B counting up.
  Adapter loaded() {
    Adapter adapter;
    adapter.config = config_;
    adapter.config.target_modules = {ModuleSelection::Kind::names, {"q_proj"}, {}};
    adapter.config.base_model_name_or_path = "some/base";
    for (const int layer : {0, 1}) {
      AdapterEntry entry{
          "model.layers." + std::to_string(layer) + ".self_attn.q_proj", 2, 4, 6, {}, {}};
      for (int i = 0; i < 12; ++i) {
        entry.b.push_back(static_cast<float>(i + 1));
        if (i < 8) {
          entry.a.push_back(static_cast<float>(i + 1 + 10 * layer));
        }
      }
      adapter.entries.push_back(entry);
    }
    return adapter;
  }
  std::string attach_message(const Adapter& adapter) {
    return message_of([&] { attach(*backend_, layers_, adapter, Trainable::no); });
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::vector<LinearLayer> storage_;
  std::vector<LinearLayer*> layers_;
  AdapterConfig config_;
};

TEST_F(Attach, AllLinearTakesAllButTheHead) {
  const AttachedAdapter attached = attach_config();
  EXPECT_EQ(attached.layers.size(), 4);
  EXPECT_FALSE(layers_[4]->lora);
  EXPECT_EQ(attached.config.target_modules.names,
            (std::vector<std::string>{"down_proj", "q_proj"}));
  EXPECT_EQ(attached.parameters(), 2 * (2 * (4 + 6) + 2 * (10 + 4)));
}

TEST_F(Attach, TargetsThatLeaveSomeOutAreSpelledInFull) {
  config_.exclude_modules.names = {"layers.1.self_attn.q_proj"};
  EXPECT_EQ(
      attach_config().config.target_modules.names,
      (std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
                                "model.layers.1.mlp.down_proj"}));
}

TEST_F(Attach, NewFactorsAreKaimingUniformAndZero) {
  config_.rank = 512;
  const AttachedAdapter attached = attach_config();
  const std::vector<float> a = to_host(*backend_, layers_[1]->lora->a.value);
  const float bound = 1.0F / std::sqrt(10.0F);
  double squares = 0;
  for (const float value : a) {
    ASSERT_LE(std::abs(value), bound);
    squares += value * value;
  }
  // The variance of a uniform distribution is a third of its bound squared.
  EXPECT_NEAR(squares / static_cast<double>(a.size()), bound * bound / 3, 0.002);
  for (const LinearLayer* layer : attached.layers) {
    for (const float value : to_host(*backend_, layer->lora->b.value)) {
      ASSERT_EQ(value, 0.0F);
    }
  }
}

TEST_F(Attach, TheSameSeedGivesTheSameFactorsWhateverElseIsAdapted) {
  AttachedAdapter attached = attach_config(7);
  const std::vector<float> first = to_host(*backend_, layers_[2]->lora->a.value);
  EXPECT_NE(first, to_host(*backend_, layers_[0]->lora->a.value));  // layers differ
  attached.detach();
  config_.target_modules = ModuleSelection::parse("layers.1.self_attn.q_proj");
  attached = attach_config(7);
  EXPECT_EQ(to_host(*backend_, layers_[2]->lora->a.value), first);
  attached.detach();
  attached = attach_config(8);
  EXPECT_NE(to_host(*backend_, layers_[2]->lora->a.value), first);
}

TEST_F(Attach, FactorsAreViewsOfTheArenas) {
  config_.dropout = 0.25;
  config_.rank_pattern = {{"down_proj", 3}};
  config_.use_rslora = true;
  const AttachedAdapter attached = attach_config();
  backend_->fill(5.0F, attached.values);
  backend_->fill(6.0F, attached.grads);
  for (const LinearLayer* layer : attached.layers) {
    const bool is_down = layer->name.ends_with("down_proj");
    const int64_t rank = is_down ? 3 : 2;
    EXPECT_EQ(layer->lora->a.value.shape(), (Shape{rank, layer->in_features()}));
    EXPECT_EQ(layer->lora->b.value.shape(), (Shape{layer->out_features(), rank}));
    EXPECT_EQ(layer->lora->b.name, layer->name + ".lora_B");
    EXPECT_FLOAT_EQ(layer->lora->scaling, 4.0F / std::sqrt(static_cast<float>(rank)));
    EXPECT_EQ(layer->lora->dropout, 0.25F);
    EXPECT_EQ(to_host(*backend_, layer->lora->b.value)[0], 5.0F);
    EXPECT_EQ(to_host(*backend_, layer->lora->a.grad)[0], 6.0F);
  }
  EXPECT_NE(layers_[0]->lora->stream, layers_[2]->lora->stream);
}

TEST_F(Attach, TargetsThatMatchNothingAreNamed) {
  config_.target_modules = ModuleSelection::parse("q_proj,w_proj,proj");
  EXPECT_EQ(message_of([&] { attach_config(); }),
            "target modules: no linear layer is named w_proj, proj; there are down_proj, lm_head, "
            "q_proj (or write all-linear)");
  config_.target_modules = {ModuleSelection::Kind::expression, {}, "h\\..*"};
  EXPECT_EQ(message_of([&] { attach_config(); }),
            "target modules: they select no layer; there are down_proj, lm_head, q_proj (or write "
            "all-linear)");
}

TEST_F(Attach, BadValuesAreNamed) {
  config_.rank = 0;
  EXPECT_EQ(message_of([&] { attach_config(); }), "LoRA: rank (r) is 0; a rank is from 1 to 65536");
}

TEST_F(Attach, ALayerTakesOneAdapter) {
  const AttachedAdapter attached = attach_config();
  EXPECT_EQ(message_of([&] { attach_config(); }),
            "model.layers.0.self_attn.q_proj: has an adapter already; detach that first");
}

TEST_F(Attach, LoadedFactorsArriveAndComeBack) {
  const Adapter adapter = loaded();
  AttachedAdapter attached = attach(*backend_, layers_, adapter, Trainable::no);
  EXPECT_FALSE(attached.grads);
  EXPECT_FALSE(layers_[0]->trainable());
  EXPECT_EQ(to_host(*backend_, layers_[2]->lora->a.value), adapter.entries[1].a);
  const Adapter back = attached.to_adapter(*backend_);
  ASSERT_EQ(back.entries.size(), 2);
  EXPECT_EQ(back.entries[1].b, adapter.entries[1].b);
  EXPECT_EQ(back.config, adapter.config);
  attached.detach();
  EXPECT_FALSE(layers_[0]->lora);
}

TEST_F(Attach, ABaseThatDoesNotFitIsNamed) {
  Adapter adapter = loaded();
  adapter.entries[1].module = "model.layers.7.self_attn.q_proj";
  EXPECT_EQ(attach_message(adapter),
            "adapter: the model has no linear layers named model.layers.7.self_attn.q_proj; use "
            "the model that the adapter was trained on, \"some/base\"");
  adapter = loaded();
  adapter.entries[0].out = 4;
  adapter.entries[0].b.resize(8);
  EXPECT_EQ(attach_message(adapter),
            "adapter: layers of other sizes than the model's: model.layers.0.self_attn.q_proj "
            "(adapter 4 to 4, model 4 to 6); use the model that the adapter was trained on, "
            "\"some/base\"");
  adapter = loaded();
  adapter.entries.pop_back();
  EXPECT_EQ(attach_message(adapter),
            "adapter: its config targets layers that it has no factors for: "
            "model.layers.1.self_attn.q_proj; its file is incomplete, or use the model that the "
            "adapter was trained on, \"some/base\"");
  adapter = loaded();
  adapter.entries[0].a.pop_back();
  EXPECT_EQ(attach_message(adapter),
            "adapter: the factors of model.layers.0.self_attn.q_proj do not have the rank that "
            "its config states");
  for (const LinearLayer* layer : layers_) {
    EXPECT_FALSE(layer->lora);  // a refused adapter leaves no traces
  }
}

TEST_F(Attach, AnAdapterThatChangesNothingIsReported) {
  Adapter adapter = loaded();
  for (AdapterEntry& entry : adapter.entries) {
    entry.b.assign(entry.b.size(), 0.0F);
  }
  std::string logged;
  const LogSink before =
      set_log_sink([&](LogLevel, std::string_view message) { logged += message; });
  AttachedAdapter attached = attach(*backend_, layers_, adapter, Trainable::yes);
  EXPECT_EQ(logged, "");  // it is about to be trained
  attached.detach();
  attach(*backend_, layers_, adapter, Trainable::no);
  set_log_sink(before);
  EXPECT_EQ(logged,
            "the adapter changes nothing: every B is zero, as before the first training step");
}

TEST_F(Attach, MergingRoundsOnce) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    LinearLayer& layer = *layers_[0];
    layer.weight.value = weight(6, 4, dtype);
    const Tensor wide = backend_->allocate({6, 4}, DType::f32);
    backend_->cast(layer.weight.value, wide);
    const std::vector<float> before = to_host(*backend_, wide);
    const Adapter adapter = loaded();
    AttachedAdapter attached = attach(*backend_, layers_, adapter, Trainable::no);
    merge_into(*backend_, layer, dtype);
    EXPECT_FALSE(layer.lora);
    EXPECT_EQ(layer.weight.value.dtype(), dtype);
    backend_->cast(layer.weight.value, wide);
    const std::vector<float> after = to_host(*backend_, wide);
    for (int o = 0; o < 6; ++o) {
      for (int i = 0; i < 4; ++i) {
        float sum = before[o * 4 + i];
        for (int r = 0; r < 2; ++r) {
          sum += 2.0F * adapter.entries[0].b[o * 2 + r] * adapter.entries[0].a[r * 4 + i];
        }
        const float expected = dtype == DType::bf16  ? bf16_to_f32(f32_to_bf16(sum))
                               : dtype == DType::f16 ? f16_to_f32(f32_to_f16(sum))
                                                     : sum;
        EXPECT_FLOAT_EQ(after[o * 4 + i], expected) << name_of(dtype);
      }
    }
    attached.detach();
  }
}

TEST_F(Attach, WhatIsKeptForInferenceIsRoundedWhereProductsRoundToo) {
  constexpr float kNoBf16 = 1.001F;
  Adapter adapter = loaded();
  adapter.entries[0].a[0] = kNoBf16;
  for (const auto precision : {MatmulPrecision::highest, MatmulPrecision::medium}) {
    for (const DType base : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} {}", static_cast<int>(precision), name_of(base)));
      backend_ = make_backend("cpu", {.threads = 1, .matmul_precision = precision});
      layers_[0]->weight.value = weight(6, 4, base);
      layers_[2]->weight.value = weight(6, 4, base);
      AttachedAdapter attached = attach(*backend_, layers_, adapter, Trainable::yes);
      attached.keep_for_inference(*backend_);
      EXPECT_FALSE(layers_[0]->trainable());
      const bool rounds = precision == MatmulPrecision::medium && base == DType::bf16;
      const Tensor& a = layers_[0]->lora->a.value;
      EXPECT_EQ(attached.values.dtype(), rounds ? DType::bf16 : DType::f32);
      EXPECT_EQ(a.dtype(), attached.values.dtype());
      const Tensor wide = backend_->allocate(a.shape(), DType::f32);
      backend_->cast(a, wide);
      std::vector<float> expected = adapter.entries[0].a;
      expected[0] = rounds ? 1.0F : kNoBf16;
      EXPECT_EQ(to_host(*backend_, wide), expected);
      if (rounds) {  // what was rounded goes nowhere
        EXPECT_EQ(message_of([&] { attached.to_adapter(*backend_); }),
                  "adapter: its factors were rounded to bf16 for inference; attach it anew to save "
                  "or merge it");
        EXPECT_EQ(message_of([&] { merge_into(*backend_, *layers_[0], DType::f32); }),
                  "model.layers.0.self_attn.q_proj: its adapter was rounded to bf16 for inference; "
                  "attach it anew to merge it");
      } else {
        EXPECT_EQ(attached.to_adapter(*backend_).entries[0].a, adapter.entries[0].a);
      }
      attached.detach();
    }
  }
}

TEST_F(Attach, MergingWithoutAnAdapterChangesNothing) {
  const void* before = layers_[0]->weight.value.address();
  merge_into(*backend_, *layers_[0], DType::bf16);
  EXPECT_EQ(layers_[0]->weight.value.address(), before);
}

}  // namespace
}  // namespace wick
