// Norm, rotation, attention, gate and embedding: values and gradients against the scalar reference.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/reference/attention.h"
#include "tests/reference/rowwise.h"
#include "tests/support/op_test.h"
#include "wick/ops/activation.h"
#include "wick/ops/attention.h"
#include "wick/ops/embedding.h"
#include "wick/ops/norm.h"

namespace wick {
namespace {

using test::Arrays;
using test::Complex;
using test::complex_step;
using test::draw;
using test::Floats;
using test::Gradients;
using test::message_of;
using test::OpsTest;
using test::to_device;
using test::to_host;

// ---- rms_norm

TEST_F(OpsTest, RmsNormGivesItsInputAndWeightTheirGradients) {
  constexpr int64_t kRows = 6, C = 9;
  const Floats x = draw(kRows * C, 11);
  const Floats w = draw(C, 12);
  const Floats dy = draw(kRows * C, 13);
  const auto reference = [](const Arrays& in) {
    std::vector<Complex> y(kRows * C);
    reference::rms_norm<Complex>(in[0].data(), in[1].data(), 1e-3F, kRows, C, y.data(), nullptr);
    return y;
  };
  Tape tape(*backend_);
  const Var input = tape.leaf(device(x, {2, 3, C}));
  const Parameter weight = trained("w", w, {C});
  const Var y = rms_norm(*backend_, &tape, input, weight, 1e-3F);
  EXPECT_EQ(y.value.shape(), Shape({2, 3, C}));
  expect_value(y.value, reference, {x, w});
  EXPECT_EQ(to_host(*backend_, y.keep().get()), to_host(*backend_, y.value)) << "the recipe";

  tape.backward(y, device(dy, {2, 3, C}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), dy); }, {x, w});
  expect_close(tape.gradient(input), expected[0], "dx");
  expect_close(weight.grad, expected[1], "dw");
}

TEST_F(OpsTest, RmsNormAddsToTheGradientThatItsInputHas) {
  const Floats x = draw(8, 14);
  Tape tape(*backend_);
  const Var input = tape.leaf(device(x, {1, 8}));
  const Parameter weight{"w", device(Floats(8, 1.0F), {8}), {}};
  const Var y = rms_norm(*backend_, &tape, input, weight, 1e-6F);
  tape.give(input, device(Floats(8, 100.0F), {1, 8}));
  tape.backward(y, device(x, {1, 8}));  // along x the norm does not change: its gradient is 0
  for (const float value : to_host(*backend_, tape.gradient(input))) {
    EXPECT_NEAR(value, 100.0F, 1e-3F);
  }
}

// ---- layer_norm

TEST_F(OpsTest, LayerNormGivesItsInputWeightAndBiasTheirGradients) {
  constexpr int64_t kRows = 6, C = 9;
  const Floats x = draw(kRows * C, 15);
  const Floats w = draw(C, 16);
  const Floats b = draw(C, 17);
  const Floats dy = draw(kRows * C, 18);
  const auto reference = [](const Arrays& in) {
    std::vector<Complex> y(kRows * C);
    reference::layer_norm<Complex>(in[0].data(), in[1].data(), in[2].data(), 1e-3F, kRows, C,
                                   y.data(), nullptr);
    return y;
  };
  Tape tape(*backend_);
  const Var input = tape.leaf(device(x, {2, 3, C}));
  const Parameter weight = trained("w", w, {C});
  const Parameter bias = trained("b", b, {C});
  const Var y = layer_norm(*backend_, &tape, input, weight, bias, 1e-3F);
  EXPECT_EQ(y.value.shape(), Shape({2, 3, C}));
  expect_value(y.value, reference, {x, w, b});
  EXPECT_EQ(to_host(*backend_, y.keep().get()), to_host(*backend_, y.value)) << "the recipe";

  tape.backward(y, device(dy, {2, 3, C}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), dy); }, {x, w, b});
  expect_close(tape.gradient(input), expected[0], "dx");
  expect_close(weight.grad, expected[1], "dw");
  expect_close(bias.grad, expected[2], "db");
}

TEST_F(OpsTest, LayerNormOfAFrozenModelIsRecordedNowhere) {
  Tape tape(*backend_);
  const Parameter weight{"w", device(Floats(4, 1.0F), {4}), {}};
  const Var y = layer_norm(*backend_, &tape, {device({1, 2, 3, 4}, {1, 4})}, weight, {}, 0.0F);
  EXPECT_EQ(tape.steps(), 0U);
  EXPECT_NEAR(to_host(*backend_, y.value)[3], 1.3416408F, 1e-6F);  // 1.5 / sqrt(1.25)
}

TEST_F(OpsTest, LayerNormRefusesAWeightOfAnotherSize) {
  const Parameter weight{"ln.weight", device(Floats(3), {3}), {}};
  EXPECT_EQ(message_of([&] {
              layer_norm(*backend_, nullptr, {device(Floats(8), {2, 4})}, weight, {}, 0.0F);
            }),
            "layer_norm: ln.weight has 3 values, input [2, 4] has 4 columns");
}

// ---- rope and attention

TEST_F(OpsTest, RopeIsUndoneByItsGradient) {
  constexpr int64_t H = 2, D = 6, P = 5;
  const std::vector<int32_t> positions = {0, 1, 2, 0, 4};
  const Floats x = draw(5 * H * D, 21);
  const Floats dy = draw(5 * H * D, 22);
  Floats table;
  for (int64_t p = 0; p < P; ++p) {
    for (const double phase : {0.0, std::numbers::pi / 2}) {  // cos, then sin
      for (int i = 0; i < D / 2; ++i) {
        table.push_back(static_cast<float>(std::cos(static_cast<double>(p) / (i + 1) - phase)));
      }
    }
  }
  const std::vector<Complex> table_reference(table.begin(), table.end());
  const auto reference = [&](const Arrays& in) {
    std::vector<Complex> y(in[0].size());
    reference::rope<Complex>(in[0].data(), positions.data(), table_reference.data(),
                             RopeDirection::forward, {5, H, D, D}, y.data());
    return y;
  };
  Tape tape(*backend_);
  const Var input = tape.leaf(device(x, {5, H, D}));
  const Tensor ids = to_device(*backend_, positions, {5});
  const Tensor angles = device(table, {P, D});
  const Var y = rope(*backend_, &tape, input, {ids, angles});
  expect_value(y.value, reference, {x});
  EXPECT_EQ(to_host(*backend_, input.value), x) << "a shared input is left alone";

  tape.backward(y, device(dy, {5, H, D}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), dy); }, {x});
  expect_close(tape.gradient(input), expected[0], "dx");
  const Tensor only = rope(*backend_, nullptr, Var{device(x, {5, H, D})}, {ids, angles}).value;
  expect_value(only, reference, {x});
}

struct AttentionCase {
  const char* name;
  int64_t window;
};

class AttentionTest : public OpsTest, public testing::WithParamInterface<AttentionCase> {};

TEST_P(AttentionTest, GivesQueriesKeysAndValuesTheirGradients) {
  constexpr int64_t kTokens = 9, H = 4, G = 2, D = 4;
  const std::vector<int32_t> spans = {0, 6, 0, 6, 6, 3, 6, 3};
  const AttentionArgs args{.causal = true, .window = GetParam().window, .scale = 0.5F};
  const std::vector<Floats> inputs = {draw(kTokens * H * D, 31), draw(kTokens * G * D, 32),
                                      draw(kTokens * G * D, 33)};
  const Floats d_o = draw(kTokens * H * D, 34);
  const auto reference = [&](const Arrays& in) {
    std::vector<Complex> o(in[0].size());
    reference::attention<Complex>(in[0].data(), in[1].data(), in[2].data(), spans.data(), args,
                                  {H, G, D, 2}, o.data(), nullptr);
    return o;
  };
  Tape tape(*backend_);
  const Var q = tape.leaf(device(inputs[0], {kTokens, H, D}));
  const Var k = tape.leaf(device(inputs[1], {kTokens, G, D}));
  const Var v = tape.leaf(device(inputs[2], {kTokens, G, D}));
  const Var o = attention(*backend_, &tape, q, k, v, to_device(*backend_, spans, {2, 4}), args);
  expect_value(o.value, reference, inputs);

  tape.backward(o, device(d_o, {kTokens, H, D}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), d_o); }, inputs);
  expect_close(tape.gradient(q), expected[0], "dq");
  expect_close(tape.gradient(k), expected[1], "dk");
  expect_close(tape.gradient(v), expected[2], "dv");
}

INSTANTIATE_TEST_SUITE_P(Windows, AttentionTest,
                         testing::Values(AttentionCase{"Full", 0}, AttentionCase{"Window", 3}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(OpsTest, AttentionRefusesHeadsThatDoNotShareKeysEvenly) {
  const Var q{device(draw(int64_t{3} * 4, 1), {1, 3, 4})};
  const Var k{device(draw(int64_t{2} * 4, 1), {1, 2, 4})};
  const Tensor spans = to_device(*backend_, std::vector<int32_t>{0, 1, 0, 1}, {1, 4});
  EXPECT_EQ(message_of([&] { attention(*backend_, nullptr, q, k, k, spans, {}); }),
            "attention: queries [1, 3, 4] do not fit keys [1, 2, 4]");
}

// ---- gate and add

class GateTest : public OpsTest, public testing::WithParamInterface<Activation> {};

TEST_P(GateTest, GivesBothInputsTheirGradients) {
  constexpr int64_t kCount = 30;
  const Floats g = draw(kCount, 41, 2.0F);
  const Floats u = draw(kCount, 42);
  const Floats dh = draw(kCount, 43);
  const auto reference = [](const Arrays& in) {
    std::vector<Complex> h(kCount);
    reference::gate<Complex>(in[0].data(), in[1].data(), GetParam(), kCount, h.data());
    return h;
  };
  Tape tape(*backend_);
  const Var gate_input = tape.leaf(device(g, {3, 10}));
  const Var up = tape.leaf(device(u, {3, 10}));
  const Var h = gate(*backend_, &tape, gate_input, up, GetParam());
  expect_value(h.value, reference, {g, u});
  EXPECT_EQ(to_host(*backend_, h.keep().get()), to_host(*backend_, h.value)) << "the recipe";

  tape.backward(h, device(dh, {3, 10}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), dh); }, {g, u});
  expect_close(tape.gradient(gate_input), expected[0], "dg");
  expect_close(tape.gradient(up), expected[1], "du");
  EXPECT_EQ(to_host(*backend_, gate_input.value), g) << "a shared input is left alone";
}

TEST_P(GateTest, OverwritesInputsThatNoOneElseHolds) {
  const Floats g = draw(20, 44);
  const Floats u = draw(20, 45);
  Tape tape(*backend_);
  Var first = tape.leaf(device(g, {2, 10}));
  Var second = tape.leaf(device(u, {2, 10}));
  const Var first_id = first.without_value();
  const void* place = first.value.address();
  Var h = gate(*backend_, &tape, first, second, GetParam());
  first = second = Var();
  const Var output = h.without_value();
  h = Var();
  tape.backward(output, device(draw(20, 46), {2, 10}));
  EXPECT_EQ(tape.gradient(first_id).address(), place);
}

INSTANTIATE_TEST_SUITE_P(Activations, GateTest,
                         testing::Values(Activation::silu, Activation::gelu_tanh));

TEST_F(OpsTest, AddGivesBothTheWholeGradient) {
  Tape tape(*backend_);
  const Var a = tape.leaf(device({1, 2}, {2}));
  const Var b = tape.leaf(device({10, 20}, {2}));
  const Var y = add(*backend_, &tape, a, b);
  EXPECT_EQ(to_host(*backend_, y.value), (Floats{11, 22}));
  EXPECT_EQ(to_host(*backend_, b.value), (Floats{10, 20}));
  tape.backward(y, device({3, 4}, {2}));
  EXPECT_EQ(to_host(*backend_, tape.gradient(a)), (Floats{3, 4}));
  EXPECT_EQ(to_host(*backend_, tape.gradient(b)), (Floats{3, 4}));
}

// ---- embedding

TEST_F(OpsTest, EmbeddingAddsUpTheGradientsOfARepeatedToken) {
  Tape tape(*backend_);
  const Parameter table = trained("table", {1, 2, 3, 4, 5, 6}, {3, 2});
  const Tensor ids = to_device(*backend_, std::vector<int32_t>{2, 0, 2}, {3});
  const Var y = embedding(*backend_, &tape, table, ids);
  EXPECT_EQ(to_host(*backend_, y.value), (Floats{5, 6, 1, 2, 5, 6}));
  tape.backward(y, device({1, 2, 10, 20, 100, 200}, {3, 2}));
  EXPECT_EQ(to_host(*backend_, table.grad), (Floats{10, 20, 0, 0, 101, 202}));
}

}  // namespace
}  // namespace wick
