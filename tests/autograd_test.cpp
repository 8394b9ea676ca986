// The tape: what it adds up, what it keeps, and when it lets go.
#include <gtest/gtest.h>

#include "tests/support/host_tensor.h"
#include "wick/autograd/tape.h"
#include "wick/backend/registry.h"

namespace wick {
namespace {

using test::to_device;
using test::to_host;
using Values = std::vector<float>;

class TapeTest : public testing::Test {
 protected:
  Tensor values(const Values& host) {
    return to_device(*backend_, host, {static_cast<int64_t>(host.size())});
  }
  Values host(const Tensor& tensor) { return to_host(*backend_, tensor); }
  // An op whose gradient is its output's, `times` times over.
  Var pass(Tape& tape, const Var& x, int times = 1) {
    return tape.record(x.value, [&tape, x, times](const Tensor& gradient) {
      for (int i = 0; i < times; ++i) {
        tape.give(x, gradient);
      }
    });
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

TEST_F(TapeTest, GradientsOfAllUsesAddUp) {
  Tape tape(*backend_);
  const Var x = tape.leaf(values({1, 2}));
  const Var once = pass(tape, x);
  const Var thrice = pass(tape, x, 3);
  tape.give(once, values({1, 10}));
  tape.backward(thrice, values({100, 1000}));
  EXPECT_EQ(host(tape.gradient(x)), (Values{301, 3010}));
}

TEST_F(TapeTest, AGradientGivenToTwoIsNotChangedByAddingToOne) {
  Tape tape(*backend_);
  const Var a = tape.leaf(values({0}));
  const Var b = tape.leaf(values({0}));
  const Tensor shared = values({5});
  tape.give(a, shared);
  tape.give(b, shared);
  tape.give(a, values({2}));
  const Tape::Sink sink = tape.sink(b, {1});
  backend_->fill(1.0F, sink.tensor);
  EXPECT_TRUE(sink.accumulate);
  EXPECT_EQ(host(tape.gradient(a)), (Values{7}));
  EXPECT_EQ(host(tape.gradient(b)), (Values{1}));
  EXPECT_EQ(host(shared), (Values{5}));
}

TEST_F(TapeTest, TheFirstSinkIsToBeOverwritten) {
  Tape tape(*backend_);
  const Var x = tape.leaf(values({1, 2, 3}));
  EXPECT_FALSE(tape.sink(x, {3}).accumulate);
  EXPECT_TRUE(tape.sink(x, {3}).accumulate);
}

TEST_F(TapeTest, AnOutputThatTheLossDoesNotDependOnIsSkipped) {
  Tape tape(*backend_);
  const Var x = tape.leaf(values({1}));
  bool ran = false;
  tape.record(values({1}), [&ran](const Tensor&) { ran = true; });
  const Var used = pass(tape, x);
  tape.backward(used, values({4}));
  EXPECT_FALSE(ran);
  EXPECT_EQ(host(tape.gradient(x)), (Values{4}));
}

TEST_F(TapeTest, StepsAndGradientsAreDroppedAsBackwardGoes) {
  Tape tape(*backend_);
  const Var x = tape.leaf(values({1}));
  auto kept = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = kept;
  bool dropped_before_next = false;
  const Var first = tape.record(x.value, [&](const Tensor& gradient) {
    dropped_before_next = watch.expired();
    tape.give(x, gradient);
  });
  const Var second = tape.record(first.value, [&tape, first, kept](Tensor gradient) {
    tape.give(first, std::move(gradient));
  });
  kept.reset();
  EXPECT_EQ(tape.steps(), 2U);
  tape.backward(second, values({3}));
  EXPECT_TRUE(dropped_before_next);
  EXPECT_EQ(tape.steps(), 0U);
  EXPECT_FALSE(tape.gradient(second));
  EXPECT_FALSE(tape.gradient(first));
  EXPECT_EQ(host(tape.gradient(x)), (Values{3}));
}

TEST_F(TapeTest, AGradientTakesTheShapeOfItsVar) {
  Tape tape(*backend_);
  const Var x = tape.leaf(to_device(*backend_, Values{1, 2, 3, 4}, {2, 2}));
  tape.give(x.reshaped({4}), values({1, 2, 3, 4}));
  EXPECT_EQ(tape.gradient(x).shape(), Shape({2, 2}));
  EXPECT_EQ(tape.sink(x, {4, 1}).tensor.shape(), Shape({4, 1}));
}

TEST_F(TapeTest, ARecipeRunsOnceForAllAndIsDroppedWithTheLastKeeper) {
  int runs = 0;
  Tensor source = values({7});
  Var x{values({7}), -1, std::make_shared<Recipe>([&runs, source] {
          ++runs;
          return source;
        })};
  auto first = std::make_unique<Kept>(x.keep());
  auto second = std::make_unique<Kept>(x.reshaped({1, 1}).keep());
  x = Var();
  EXPECT_FALSE(source.sole_owner());
  EXPECT_EQ(host(first->get()), (Values{7}));
  EXPECT_EQ(second->get().shape(), Shape({1, 1}));
  EXPECT_EQ(runs, 1);
  first.reset();
  second.reset();
  EXPECT_TRUE(source.sole_owner());
}

TEST_F(TapeTest, CheckpointRunsAgainForTheGradient) {
  int runs = 0;
  const auto twice = [this, &runs](Tape* tape, const Var& x) {
    ++runs;
    return tape == nullptr ? x : pass(*tape, x, 2);
  };
  Tape tape(*backend_);
  const Var x = tape.leaf(values({1}));
  const Var y = checkpoint(*backend_, &tape, x, false, twice);
  EXPECT_EQ(tape.steps(), 1U);
  EXPECT_EQ(runs, 1);
  tape.backward(y, values({5}));
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(host(tape.gradient(x)), (Values{10}));
}

TEST_F(TapeTest, CheckpointOfWhatNeedsNoGradientRecordsNothing) {
  Tape tape(*backend_);
  const Var y =
      checkpoint(*backend_, &tape, Var{values({1})}, false, [](Tape*, const Var& x) { return x; });
  EXPECT_FALSE(y.needs_gradient());
  EXPECT_EQ(tape.steps(), 0U);
}

}  // namespace
}  // namespace wick
