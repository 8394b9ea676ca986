// Linear layers with and without LoRA: values and gradients against the scalar reference.
#include <gtest/gtest.h>

#include "tests/reference/lora.h"
#include "tests/reference/matmul.h"
#include "tests/reference/rowwise.h"
#include "tests/support/op_test.h"
#include "wick/ops/linear.h"
#include "wick/ops/lora_linear.h"

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

constexpr int32_t kStep = 4;

std::function<std::vector<Complex>(const Arrays&)> lora_reference(float scaling,
                                                                  const DropoutArgs& dropout) {
  return [=](const Arrays& in) {  // x, w, bias, a, b
    std::vector<Complex> y = linear_reference(in);
    std::vector<Complex> dropped = in[0];
    if (dropout.probability > 0) {
      reference::dropout<Complex>(in[0].data(), dropout, kStep, T * kIn, dropped.data());
    }
    std::vector<Complex> s(T * kRank);
    const reference::Adapter<Complex> adapter{in[3].data(), in[4].data(), kRank, Complex(scaling)};
    reference::lora_forward<Complex>(dropped.data(), &adapter, nullptr, {T, kIn, kOut, kRank},
                                     s.data(), y.data());
    return y;
  };
}

class LoraTest : public OpsTest, public testing::WithParamInterface<float> {
 protected:
  Tensor step() { return test::to_device(*backend_, std::vector{kStep}, {1}); }
};

TEST_P(LoraTest, GivesInputAdapterWeightAndBiasTheirGradients) {
  const LinearData data;
  const DropoutArgs dropout{.probability = GetParam(), .seed = 5, .stream = 9, .step = step()};
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
  const DropoutArgs dropout{.probability = GetParam(), .seed = 6, .stream = 2, .step = step()};
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
  const DropoutArgs dropout{.probability = GetParam(), .seed = 7, .stream = 3, .step = step()};
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

}  // namespace
}  // namespace wick
