// Every op: its value and every gradient against the scalar reference by complex step.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/reference/attention.h"
#include "tests/reference/lora.h"
#include "tests/reference/loss.h"
#include "tests/reference/matmul.h"
#include "tests/reference/rowwise.h"
#include "tests/support/complex_step.h"
#include "tests/support/host_tensor.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"
#include "wick/ops/activation.h"
#include "wick/ops/attention.h"
#include "wick/ops/embedding.h"
#include "wick/ops/linear.h"
#include "wick/ops/lora_linear.h"
#include "wick/ops/loss.h"
#include "wick/ops/norm.h"

namespace wick {
namespace {

using test::Arrays;
using test::Complex;
using test::complex_step;
using test::draw;
using test::relative_difference;
using test::to_device;
using test::to_host;
using Floats = std::vector<float>;
using Gradients = std::vector<std::vector<double>>;

constexpr double kTolerance = 1e-5;

class OpsTest : public testing::Test {
 protected:
  Tensor device(const Floats& values, const Shape& shape) {
    return to_device(*backend_, values, shape);
  }
  Parameter trained(const std::string& name, const Floats& values, const Shape& shape) {
    Parameter parameter{name, device(values, shape), backend_->allocate(shape, DType::f32)};
    backend_->fill(0.0F, parameter.grad);
    return parameter;
  }
  void expect_close(const Tensor& actual, const std::vector<double>& expected, const char* what) {
    ASSERT_TRUE(actual) << what;
    EXPECT_LT(relative_difference(to_host(*backend_, actual), expected), kTolerance) << what;
  }
  // The value: the reference at the inputs themselves.
  void expect_value(const Tensor& actual,
                    const std::function<std::vector<Complex>(const Arrays&)>& f,
                    const std::vector<Floats>& inputs) {
    Arrays arrays;
    for (const Floats& input : inputs) {
      arrays.emplace_back(input.begin(), input.end());
    }
    std::vector<double> expected;
    for (const Complex& value : f(arrays)) {
      expected.push_back(value.real());
    }
    expect_close(actual, expected, "value");
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// ---- linear

constexpr int64_t T = 7, kIn = 10, kOut = 6, kRank = 3;

struct LinearData {
  Floats x = draw(T * kIn, 1);
  Floats w = draw(kOut * kIn, 2, 0.3F);
  Floats bias = draw(kOut, 3);
  Floats a = draw(kRank * kIn, 4, 0.3F);
  Floats b = draw(kOut * kRank, 5, 0.3F);
  Floats dy = draw(T * kOut, 6);
};

std::vector<Complex> linear_reference(const Arrays& in) {
  std::vector<Complex> y(T * kOut);
  reference::matmul<Complex>(in[0].data(), in[1].data(), in[2].data(), MatmulForm::nt, false,
                             {T, kOut, kIn}, y.data());
  return y;
}

TEST_F(OpsTest, LinearGivesItsInputWeightAndBiasTheirGradients) {
  const LinearData data;
  Tape tape(*backend_);
  const Var x = tape.leaf(device(data.x, {T, kIn}));
  const Parameter w = trained("w", data.w, {kOut, kIn});
  const Parameter bias = trained("bias", data.bias, {kOut});
  const Var y = linear(*backend_, &tape, x, w, &bias);
  const std::vector<Floats> inputs = {data.x, data.w, data.bias};
  expect_value(y.value, linear_reference, inputs);

  tape.backward(y, device(data.dy, {T, kOut}));
  const Gradients expected = complex_step(
      [&](const Arrays& in) { return test::dot(linear_reference(in), data.dy); }, inputs);
  expect_close(tape.gradient(x), expected[0], "dx");
  expect_close(w.grad, expected[1], "dw");
  expect_close(bias.grad, expected[2], "dbias");
}

TEST_F(OpsTest, LinearOfFrozenPartsRecordsNothing) {
  const LinearData data;
  Tape tape(*backend_);
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Var y = linear(*backend_, &tape, Var{device(data.x, {T, kIn})}, w);
  EXPECT_EQ(tape.steps(), 0U);
  EXPECT_FALSE(y.needs_gradient());
}

TEST_F(OpsTest, FrozenLinearDoesNotKeepItsInput) {
  const LinearData data;
  Tape tape(*backend_);
  Var x = tape.leaf(device(data.x, {T, kIn}));
  const Tensor watched = x.value;
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Var y = linear(*backend_, &tape, x, w);
  x = Var();
  EXPECT_TRUE(watched.sole_owner());
}

TEST_F(OpsTest, LinearOfBf16WeightsGivesItsInputItsGradient) {
  LinearData data;
  std::vector<uint16_t> narrow;
  for (float& value : data.w) {
    narrow.push_back(f32_to_bf16(value));
    value = bf16_to_f32(narrow.back());
  }
  const Parameter w{"w", backend_->allocate({kOut, kIn}, DType::bf16), {}};
  backend_->upload(std::as_bytes(std::span(narrow)), w.value);
  data.bias.assign(kOut, 0.0F);
  Tape tape(*backend_);
  const Var x = tape.leaf(device(data.x, {T, kIn}));
  const Var y = linear(*backend_, &tape, x, w);
  const std::vector<Floats> inputs = {data.x, data.w, data.bias};
  expect_value(y.value, linear_reference, inputs);
  tape.backward(y, device(data.dy, {T, kOut}));
  const Gradients expected = complex_step(
      [&](const Arrays& in) { return test::dot(linear_reference(in), data.dy); }, inputs);
  expect_close(tape.gradient(x), expected[0], "dx");
}

// The gradient of a reshaped input once had the shape of the original, and the product read past
// its end.
TEST_F(OpsTest, LinearGivesAReshapedInputItsGradient) {
  const LinearData data;
  Tape tape(*backend_);
  const Var x = tape.leaf(device(data.x, {T, kIn / 5, 5}));
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Parameter bias{"bias", device(data.bias, {kOut}), {}};
  const Var y = linear(*backend_, &tape, x.reshaped({T, kIn}), w, &bias);
  tape.backward(y, device(data.dy, {T, kOut}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(linear_reference(in), data.dy); },
                   {data.x, data.w, data.bias});
  expect_close(tape.gradient(x), expected[0], "dx");
}

TEST_F(OpsTest, LinearNamesTheWeightThatDoesNotFit) {
  const LinearData data;
  const Parameter w{"layer.weight", device(data.w, {kOut, kIn}), {}};
  EXPECT_EQ(message_of([&] {
              linear(*backend_, nullptr, Var{device(data.x, {kIn, T})}, w);
            }),
            "linear: input [10, 7] does not fit weight layer.weight [6, 10]");
}

// ---- lora_linear

std::function<std::vector<Complex>(const Arrays&)> lora_reference(float scaling,
                                                                  const DropoutArgs& dropout) {
  return [=](const Arrays& in) {  // x, w, bias, a, b
    std::vector<Complex> y = linear_reference(in);
    std::vector<Complex> dropped = in[0];
    if (dropout.probability > 0) {
      reference::dropout<Complex>(in[0].data(), dropout, T * kIn, dropped.data());
    }
    std::vector<Complex> s(T * kRank);
    const reference::Adapter<Complex> adapter{in[3].data(), in[4].data(), kRank, Complex(scaling)};
    reference::lora_forward<Complex>(dropped.data(), &adapter, nullptr, {T, kIn, kOut, kRank},
                                     s.data(), y.data());
    return y;
  };
}

class LoraTest : public OpsTest, public testing::WithParamInterface<float> {};

TEST_P(LoraTest, GivesInputAdapterWeightAndBiasTheirGradients) {
  const LinearData data;
  const DropoutArgs dropout{.probability = GetParam(), .seed = 5, .stream = 9};
  Tape tape(*backend_);
  const Var x = tape.leaf(device(data.x, {T, kIn}));
  const Parameter w = trained("w", data.w, {kOut, kIn});
  const Parameter bias = trained("bias", data.bias, {kOut});
  const Parameter a = trained("a", data.a, {kRank, kIn});
  const Parameter b = trained("b", data.b, {kOut, kRank});
  const Var y = lora_linear(*backend_, &tape, x, w, &bias, {a, b, 0.7F, dropout});
  const std::vector<Floats> inputs = {data.x, data.w, data.bias, data.a, data.b};
  const auto reference = lora_reference(0.7F, dropout);
  expect_value(y.value, reference, inputs);

  tape.backward(y, device(data.dy, {T, kOut}));
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), data.dy); }, inputs);
  expect_close(tape.gradient(x), expected[0], "dx");
  expect_close(w.grad, expected[1], "dw");
  expect_close(bias.grad, expected[2], "dbias");
  expect_close(a.grad, expected[3], "da");
  expect_close(b.grad, expected[4], "db");
}

// The common case of training: no gradient of x below the lowest adapter, none of the base.
TEST_P(LoraTest, GivesOnlyTheAdapterItsGradients) {
  const LinearData data;
  const DropoutArgs dropout{.probability = GetParam(), .seed = 6, .stream = 2};
  Tape tape(*backend_);
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Parameter bias{"bias", device(data.bias, {kOut}), {}};
  const Parameter a = trained("a", data.a, {kRank, kIn});
  const Parameter b = trained("b", data.b, {kOut, kRank});
  const Var y =
      lora_linear(*backend_, &tape, Var{device(data.x, {T, kIn})}, w, &bias, {a, b, 2.0F, dropout});
  tape.backward(y, device(data.dy, {T, kOut}));
  const auto reference = lora_reference(2.0F, dropout);
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), data.dy); },
                   {data.x, data.w, data.bias, data.a, data.b});
  expect_close(a.grad, expected[3], "da");
  expect_close(b.grad, expected[4], "db");
}

TEST_P(LoraTest, FrozenAdapterPassesTheGradientOn) {
  const LinearData data;
  const DropoutArgs dropout{.probability = GetParam(), .seed = 7, .stream = 3};
  Tape tape(*backend_);
  const Var x = tape.leaf(device(data.x, {T, kIn}));
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Parameter bias{"bias", device(data.bias, {kOut}), {}};
  const Parameter a{"a", device(data.a, {kRank, kIn}), {}};
  const Parameter b{"b", device(data.b, {kOut, kRank}), {}};
  const Var y = lora_linear(*backend_, &tape, x, w, &bias, {a, b, 2.0F, dropout});
  tape.backward(y, device(data.dy, {T, kOut}));
  const auto reference = lora_reference(2.0F, dropout);
  const Gradients expected =
      complex_step([&](const Arrays& in) { return test::dot(reference(in), data.dy); },
                   {data.x, data.w, data.bias, data.a, data.b});
  expect_close(tape.gradient(x), expected[0], "dx");
}

INSTANTIATE_TEST_SUITE_P(Dropout, LoraTest, testing::Values(0.0F, 0.4F));

TEST_F(OpsTest, LoraNamesTheAdapterThatDoesNotFit) {
  const LinearData data;
  const Parameter w{"w", device(data.w, {kOut, kIn}), {}};
  const Parameter a{"a", device(data.a, {kIn, kRank}), {}};
  const Parameter b{"b", device(data.b, {kOut, kRank}), {}};
  const Var x{device(data.x, {T, kIn})};
  EXPECT_EQ(message_of([&] {
              lora_linear(*backend_, nullptr, x, w, nullptr, {a, b, 1, {}});
            }),
            "lora: A [10, 3] does not fit weight w [6, 10]");
  const Parameter fitting{"a", device(data.a, {kRank, kIn}), {}};
  const Parameter wrong{"b", device(data.b, {kRank, kOut}), {}};
  EXPECT_EQ(message_of([&] {
              lora_linear(*backend_, nullptr, x, w, nullptr, {fitting, wrong, 1, {}});
            }),
            "lora: B [3, 6] does not fit A [3, 10] and weight w [6, 10]");
}

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
  const Var q{device(draw(3 * 4, 1), {1, 3, 4})};
  const Var k{device(draw(2 * 4, 1), {1, 2, 4})};
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

// ---- loss

class LossTest : public OpsTest, public testing::WithParamInterface<int64_t> {
 protected:
  static constexpr int64_t kTokens = 80, C = 5, V = 11;
  static constexpr float kScale = 0.25F;
  LossTest() {
    for (int32_t row = 0; row < kTokens; row += 2) {  // half of the rows have a target
      rows_.push_back(row);
      targets_.push_back(row % V);
    }
  }
  Complex reference(const Arrays& in) const {  // hidden, weight
    Complex sum(0);
    for (size_t i = 0; i < rows_.size(); ++i) {
      std::vector<Complex> logits(V);
      reference::matmul<Complex>(in[0].data() + rows_[i] * C, in[1].data(), nullptr, MatmulForm::nt,
                                 false, {1, V, C}, logits.data());
      Complex loss(0);
      reference::cross_entropy<Complex>(&targets_[i], {}, 1, V, logits.data(), &loss);
      sum += loss;
    }
    return sum;
  }
  LossRows loss_rows() {
    const auto count = static_cast<int64_t>(rows_.size());
    return {to_device(*backend_, rows_, {count}), to_device(*backend_, targets_, {count})};
  }
  double run(Tape* tape, const Var& hidden, const Parameter& weight) {
    const HeadLossOptions options{
        .vocab_size = V, .gradient_scale = kScale, .chunk_bytes = GetParam()};
    return head_loss(*backend_, tape, hidden, loss_rows(), options, [&](Tape* chunk, const Var& x) {
      return linear(*backend_, chunk, x, weight);
    });
  }
  Floats hidden_ = draw(kTokens * C, 51);
  Floats weight_ = draw(V * C, 52);
  std::vector<int32_t> rows_;
  std::vector<int32_t> targets_;
};

TEST_P(LossTest, GivesHiddenStatesAndHeadTheirScaledGradients) {
  Tape tape(*backend_);
  const Var hidden = tape.leaf(device(hidden_, {kTokens, C}));
  const Parameter weight = trained("head", weight_, {V, C});
  const double sum = run(&tape, hidden, weight);
  Arrays arrays;
  arrays.emplace_back(hidden_.begin(), hidden_.end());
  arrays.emplace_back(weight_.begin(), weight_.end());
  EXPECT_NEAR(sum / reference(arrays).real(), 1.0, kTolerance);

  const Gradients expected = complex_step(
      [&](const Arrays& in) { return reference(in) * double{kScale}; }, {hidden_, weight_});
  expect_close(tape.gradient(hidden), expected[0], "dhidden");
  expect_close(weight.grad, expected[1], "dw");
}

TEST_P(LossTest, AddsToTheGradientThatTheHiddenStatesHave) {
  Tape tape(*backend_);
  const Var hidden = tape.leaf(device(hidden_, {kTokens, C}));
  const Parameter weight{"head", device(weight_, {V, C}), {}};
  tape.give(hidden, device(Floats(kTokens * C, 100.0F), {kTokens, C}));
  run(&tape, hidden, weight);
  Gradients expected = complex_step(
      [&](const Arrays& in) { return reference(in) * double{kScale}; }, {hidden_, weight_});
  for (double& value : expected[0]) {
    value += 100.0;
  }
  expect_close(tape.gradient(hidden), expected[0], "dhidden");
}

TEST_P(LossTest, TrainsAHeadOverFrozenHiddenStates) {
  Tape tape(*backend_);
  const Parameter weight = trained("head", weight_, {V, C});
  run(&tape, Var{device(hidden_, {kTokens, C})}, weight);
  const Gradients expected = complex_step(
      [&](const Arrays& in) { return reference(in) * double{kScale}; }, {hidden_, weight_});
  expect_close(weight.grad, expected[1], "dw");
  EXPECT_EQ(tape.steps(), 0U);
}

TEST_P(LossTest, IsTheSameWithoutATape) {
  Tape tape(*backend_);
  const Parameter weight = trained("head", weight_, {V, C});
  const Tensor hidden = device(hidden_, {kTokens, C});
  const double sum = run(&tape, tape.leaf(hidden), weight);
  backend_->fill(0.0F, weight.grad);
  EXPECT_EQ(run(nullptr, Var{hidden}, weight), sum);
  EXPECT_EQ(to_host(*backend_, weight.grad), Floats(V * C, 0.0F));
}

// One chunk, and chunks of 16 of the 40 rows.
INSTANTIATE_TEST_SUITE_P(Chunks, LossTest, testing::Values(int64_t{1} << 20, int64_t{1}));

TEST_F(OpsTest, LogitsOfABatchAreNeverAliveAtOnce) {
  constexpr int64_t kTokens = 1024, C = 4, V = 1000;
  std::vector<int32_t> rows(kTokens);
  for (int32_t i = 0; i < kTokens; ++i) {
    rows[static_cast<size_t>(i)] = i;
  }
  const Parameter weight{"head", device(draw(V * C, 1), {V, C}), {}};
  Tape tape(*backend_);
  const Var hidden = tape.leaf(device(draw(kTokens * C, 2), {kTokens, C}));
  const LossRows targets{to_device(*backend_, rows, {kTokens}),
                         to_device(*backend_, std::vector<int32_t>(kTokens, 1), {kTokens})};
  backend_->reset_peak_memory();
  const size_t before = backend_->memory().in_use_bytes;
  head_loss(*backend_, &tape, hidden, targets, {.vocab_size = V, .chunk_bytes = 64 * V * 4},
            [&](Tape* chunk, const Var& x) { return linear(*backend_, chunk, x, weight); });
  EXPECT_LT(backend_->memory().peak_bytes - before, size_t{2} * 64 * V * 4);
}

}  // namespace
}  // namespace wick
