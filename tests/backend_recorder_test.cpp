// Recorded work of every back end: what is replayed is the same work on new inputs.
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/conformance.h"
#include "wick/base/error.h"

namespace wick {
namespace {

using test::poisoned;
using test::upload;
using test::Values;

class RecorderTest : public test::Conformance {
 protected:
  void SetUp() override {
    Conformance::SetUp();
    recorder_ = backend().make_recorder();
  }
  void TearDown() override {
    recorder_.reset();
    Conformance::TearDown();
  }

  Backend& backend() { return *backends_[0]; }

  // y = (x W^T) + x, by way of a tensor of the work's own.
  void product_and_sum(const Tensor& x, const Tensor& weight, const Tensor& y) {
    const Tensor product = backend().allocate(y.shape(), y.dtype());
    backend().matmul(x, weight, {}, product);
    backend().add(product, x, y);
  }

  std::unique_ptr<Recorder> recorder_;
};

INSTANTIATE_TEST_SUITE_P(, RecorderTest, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

void set(Backend& backend, const Values& values, const Tensor& to) {
  backend.copy(upload(backend, values, to.shape(), to.dtype()), to);
}

// With the weight 2 I, the work triples x.
constexpr int64_t kWidth = 24;
Values twice_identity() {
  Values values(kWidth * kWidth, 0.0);
  for (int64_t i = 0; i < kWidth; ++i) {
    values[i * kWidth + i] = 2.0;
  }
  return values;
}

TEST_P(RecorderTest, ReplaysSeeChangedInputs) {
  const Tensor weight = upload(backend(), twice_identity(), {kWidth, kWidth}, activations());
  const Tensor x = poisoned(backend(), {13, kWidth}, activations());
  const Tensor y = poisoned(backend(), {13, kWidth}, activations());
  for (int round = 0; round < 5; ++round) {
    set(backend(), Values(x.elements(), round), x);
    recorder_->run(1, [&] { product_and_sum(x, weight, y); });
    EXPECT_EQ(test::download(backend(), y), Values(x.elements(), 3.0 * round)) << round;
  }
}

TEST_P(RecorderTest, ShapesInTurnKeepApart) {
  const Tensor weight = upload(backend(), twice_identity(), {kWidth, kWidth}, activations());
  std::vector<Tensor> xs;
  std::vector<Tensor> ys;
  // More keys than a recorder need keep.
  for (int64_t rows = 1; rows <= 70; ++rows) {
    const Values values(rows * kWidth, static_cast<double>(rows));
    xs.push_back(upload(backend(), values, {rows, kWidth}, activations()));
    ys.push_back(poisoned(backend(), {rows, kWidth}, activations()));
  }
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < xs.size(); ++i) {
      if (i > 3 && round == 2) {
        continue;  // so that the first ones stay and are replayed
      }
      set(backend(), Values(ys[i].elements(), -1.0), ys[i]);
      recorder_->run(i, [&] { product_and_sum(xs[i], weight, ys[i]); });
      const Values wanted(ys[i].elements(), 3.0 * static_cast<double>(i + 1));
      ASSERT_EQ(test::download(backend(), ys[i]), wanted) << i << " in round " << round;
    }
  }
}

TEST_P(RecorderTest, ReplaysWriteIntoNoTensorMadeSince) {
  const Tensor weight = upload(backend(), twice_identity(), {kWidth, kWidth}, activations());
  const Tensor x = upload(backend(), Values(13 * kWidth, 1.0), {13, kWidth}, activations());
  const Tensor y = poisoned(backend(), {13, kWidth}, activations());
  std::vector<Tensor> others;
  for (int round = 0; round < 6; ++round) {
    recorder_->run(1, [&] { product_and_sum(x, weight, y); });
    // Of the size of the work's own tensor, which a careless cache would hand out here.
    others.push_back(upload(backend(), Values(x.elements(), 7.0), x.shape(), x.dtype()));
  }
  for (const Tensor& other : others) {
    EXPECT_EQ(test::download(backend(), other), Values(x.elements(), 7.0));
  }
}

TEST_P(RecorderTest, WorkThatFailsLeavesTheBackEndUsable) {
  const Tensor weight = upload(backend(), twice_identity(), {kWidth, kWidth}, activations());
  const Tensor x = upload(backend(), Values(13 * kWidth, 1.0), {13, kWidth}, activations());
  const Tensor y = poisoned(backend(), {13, kWidth}, activations());
  for (int round = 0; round < 6; ++round) {
    const auto work = [&] {
      product_and_sum(x, weight, y);
      check(round % 2 == 1, "stopped in round {}", round);
    };
    if (round % 2 == 0 && (round < 4 || !recorder_->replays())) {
      EXPECT_THROW(recorder_->run(1, work), Error) << round;
    } else {
      recorder_->run(1, work);
    }
    backend().synchronize();
    set(backend(), Values(y.elements(), -1.0), y);
    recorder_->run(100 + round, [&] { product_and_sum(x, weight, y); });
    EXPECT_EQ(test::download(backend(), y), Values(x.elements(), 3.0)) << round;
  }
}

TEST_P(RecorderTest, TheMemoryOfWorkIsGivenBackAndCountedAtItsPeak) {
  const Tensor x = upload(backend(), Values(1000, 1.0), {1000});
  const Tensor y = poisoned(backend(), {1000});
  for (int round = 0; round < 4; ++round) {
    backend().reset_peak_memory();
    const size_t before = backend().memory().in_use_bytes;
    recorder_->run(1, [&] {
      const Tensor large = backend().allocate({1000, 1000}, DType::f32);
      const Tensor part = large.slice(0, 1).reshaped({1000});
      backend().add(x, x, part);
      backend().add(part, x, y);
    });
    EXPECT_EQ(backend().memory().in_use_bytes, before);
    EXPECT_GE(backend().memory().peak_bytes, before + 4000000);
    EXPECT_EQ(test::download(backend(), y), Values(1000, 3.0));
  }
}

}  // namespace
}  // namespace wick
