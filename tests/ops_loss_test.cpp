// The loss in chunks: value, gradients and memory.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/reference/loss.h"
#include "tests/reference/matmul.h"
#include "tests/support/op_test.h"
#include "wick/ops/linear.h"
#include "wick/ops/loss.h"

namespace wick {
namespace {

using test::Arrays;
using test::Complex;
using test::complex_step;
using test::draw;
using test::Floats;
using test::Gradients;
using test::kOpTolerance;
using test::OpsTest;
using test::to_device;
using test::to_host;

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
      reference::cross_entropy<Complex>(&targets_[i], nullptr, 1, V, logits.data(), &loss);
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
        .vocab_size = V, .gradient_scale = device({kScale}, {1}), .chunk_bytes = GetParam()};
    const auto head = [&](Tape* chunk, const Var& x) {
      return linear(*backend_, chunk, x, weight);
    };
    const LossRows targets = loss_rows();
    const Tensor losses = backend_->allocate({targets.rows.elements()}, DType::f32);
    head_loss(*backend_, tape, hidden, targets, options, head, losses);
    const Floats values = to_host(*backend_, losses);
    return std::accumulate(values.begin(), values.end(), 0.0);
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
  EXPECT_NEAR(sum / reference(arrays).real(), 1.0, kOpTolerance);

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
  const HeadLossOptions options{
      .vocab_size = V, .gradient_scale = device({1.0F}, {1}), .chunk_bytes = 64 * V * 4};
  const auto head = [&](Tape* chunk, const Var& x) { return linear(*backend_, chunk, x, weight); };
  const Tensor losses = backend_->allocate({kTokens}, DType::f32);
  head_loss(*backend_, &tape, hidden, targets, options, head, losses);
  EXPECT_LT(backend_->memory().peak_bytes - before, size_t{2} * 64 * V * 4);
}

}  // namespace
}  // namespace wick
