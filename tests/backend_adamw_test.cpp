// The optimiser's kernels of every back end against the scalar reference.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "tests/reference/loss.h"
#include "tests/reference/rowwise.h"
#include "tests/support/conformance.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

struct AdamwState {
  static constexpr int64_t kCount = 20011;
  static constexpr std::array kSegments = {
      AdamwSegment{0, 1, 0.1F, 0.0F}, AdamwSegment{1, 17, 0.01F, 0.1F},
      AdamwSegment{18, 0, 1.0F, 1.0F}, AdamwSegment{18, kCount - 20, 0.02F, 0.05F}};
  Values grad, p, m, v;

  std::vector<Tensor> run(Backend& backend, double square_sum, float max_norm, int64_t step) const {
    std::vector<Tensor> state;
    for (const Values* values : {&p, &m, &v}) {
      state.push_back(upload(backend, *values, {kCount}));
    }
    AdamwArgs args;
    args.max_gradient_norm = max_norm;
    args.square_sum = upload(backend, {square_sum}, {1});
    const auto power = static_cast<double>(step);
    args.schedule = upload(
        backend, {0.5, 1 / (1 - std::pow(0.9, power)), 1 / (1 - std::pow(0.999, power))}, {3});
    args.segments = kSegments;
    backend.adamw(upload(backend, grad, {kCount}), args, state[0], state[1], state[2]);
    return state;
  }
  void run_reference(double gradient_scale, int64_t step) {
    AdamwArgs args;
    args.segments = kSegments;
    reference::adamw(grad.data(), args, {0.5, step, gradient_scale}, p.data(), m.data(), v.data());
  }
};

class AdamwConformance : public Conformance {
 protected:
  AdamwState draw_state() {
    AdamwState state{random(AdamwState::kCount), random(AdamwState::kCount),
                     random(AdamwState::kCount, DType::f32, 0.1),
                     random(AdamwState::kCount, DType::f32, 0.1)};
    for (double& value : state.v) {
      value = std::abs(value);
    }
    return state;
  }
};

TEST_P(AdamwConformance, StepsEachSegmentByItsOwnRateAndDecay) {
  const AdamwState before = draw_state();
  AdamwState after = before;
  after.run_reference(1.0, 3);
  expect_outputs([&](Backend& backend) { return before.run(backend, 4.0, 0.0F, 3); },
                 {after.p, after.m, after.v});
}

TEST_P(AdamwConformance, ShortensOnlyGradientsThatAreTooLong) {
  const AdamwState before = draw_state();
  for (const double norm : {0.5, 4.0}) {
    AdamwState after = before;
    after.run_reference(norm > 1.0 ? 1.0 / norm : 1.0, 1);
    expect_outputs([&](Backend& backend) { return before.run(backend, norm * norm, 1.0F, 1); },
                   {after.p, after.m, after.v});
  }
}

TEST_P(AdamwConformance, ChangesNothingByAGradientThatIsNotFinite) {
  const AdamwState before = draw_state();
  for (const double sum : {std::nan(""), double{INFINITY}}) {
    const std::vector<Tensor> after = before.run(*backends_[0], sum, 1.0F, 1);
    EXPECT_EQ(test::download(*backends_[0], after[0]), before.p);
    EXPECT_EQ(test::download(*backends_[0], after[2]), before.v);
  }
}

// One step at rate 1, with 2 and 4 as corrections, from which follow factors without a rounding, of
// parameters that are 0 and do not decay: what comes out is the change, negated.
Values changes_of(Backend& backend, const Values& grad, Values& m, Values& v) {
  const auto count = static_cast<int64_t>(grad.size());
  const AdamwSegment segment{0, count, 1.0F, 0.0F};
  AdamwArgs args;
  args.square_sum = upload(backend, {1.0}, {1});
  args.schedule = upload(backend, {1.0, 2.0, 4.0}, {3});
  args.segments = {&segment, 1};
  const Tensor p = upload(backend, Values(grad.size(), 0.0), {count});
  const Tensor mean = upload(backend, m, {count});
  const Tensor square = upload(backend, v, {count});
  backend.adamw(upload(backend, grad, {count}), args, p, mean, square);
  m = test::download(backend, mean);
  v = test::download(backend, square);
  return test::download(backend, p);
}

// From the new moments there are three roundings to the change: the root, the sum, the quotient.
// One that starts from an estimate of 14 bits adds a rounding and a sixteenth, and must do as well
// at the edges of f32.
TEST_P(AdamwConformance, ChangesAreExactToFourRoundings) {
  if (GetParam().device != "cpu") {
    GTEST_SKIP() << "of the CPU's kernel";
  }
  constexpr int64_t kCount = 4099;
  const Values grad(kCount, 0.0);
  Values m = random(kCount);
  Values v = random(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    m[i] *= std::exp2(static_cast<double>(i % 160) - 90);
    v[i] = std::abs(v[i]) * std::exp2(static_cast<double>(i % 251) - 125);
  }
  constexpr std::array kEdges = {0.0, 1e-45, 1e-38, 1e38, double{INFINITY}};
  for (size_t i = 0; i < kEdges.size(); ++i) {
    v[40 * i] = kEdges[i];
    m[40 * i + 1] = std::min(kEdges[i], 1e30);
    m[40 * i + 2] = -std::min(kEdges[i], 1e30);
  }
  const Values changes = changes_of(*backends_[0], grad, m, v);
  for (int64_t i = 0; i < kCount; ++i) {
    const double wanted = -2 * m[i] / (std::sqrt(4 * v[i]) + double{1e-8F});
    const double limit = 4.1 * std::exp2(-24) * std::abs(wanted) + std::exp2(-149);
    EXPECT_LE(std::abs(changes[i] - wanted), limit) << "of " << m[i] << " and " << v[i];
  }
}

TEST_P(AdamwConformance, AChangeDoesNotDependOnThePlaceInTheArray) {
  constexpr int64_t kMost = 53;
  const Values grad = random(kMost);
  const Values m = random(kMost);
  Values v = random(kMost);
  for (double& value : v) {
    value = std::abs(value);
  }
  const auto changes_of_first = [&](int64_t count) {
    Values first_m(m.begin(), m.begin() + count);
    Values first_v(v.begin(), v.begin() + count);
    return changes_of(*backends_[0], Values(grad.begin(), grad.begin() + count), first_m, first_v);
  };
  const Values all = changes_of_first(kMost);
  for (int64_t count = 1; count < kMost; ++count) {
    EXPECT_EQ(changes_of_first(count), Values(all.begin(), all.begin() + count));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AdamwConformance, testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

TEST_P(Conformance, SumSquares) {
  for (const int64_t count : {0, 1, 15, 67, 8192, 30011}) {
    const Values x = random(count);
    expect_outputs(
        [&](Backend& backend) {
          const Tensor out = poisoned(backend, {1});
          backend.sum_squares(upload(backend, x, {count}), out);
          return std::vector{out};
        },
        {{reference::sum_squares(x.data(), count)}});
  }
}

}  // namespace
}  // namespace wick
