// A program's signal handlers run on the stacks of the threads that compute.
#include <gtest/gtest.h>
#include <sys/time.h>

#include <atomic>
#include <csignal>

#include "tests/support/conformance.h"
#include "wick/backend/registry.h"
#include "wick/base/random.h"

namespace wick {
namespace {

using test::poisoned;
using test::upload;
using test::Values;

std::atomic<int> handled{0};

// A handler that is called every 30 us or so.
class ManySignals {
 public:
  ManySignals() {
    struct sigaction action {};
    action.sa_handler = [](int) { ++handled; };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGALRM, &action, &before_);
    set_interval(30);
  }
  ~ManySignals() {
    set_interval(0);
    ::sigaction(SIGALRM, &before_, nullptr);
  }
  ManySignals(const ManySignals&) = delete;
  ManySignals& operator=(const ManySignals&) = delete;

 private:
  static void set_interval(int64_t microseconds) {
    const itimerval timer{{0, microseconds}, {0, microseconds}};
    ::setitimer(ITIMER_REAL, &timer, nullptr);
  }

  struct sigaction before_ {};
};

Values random_values(int64_t count, uint64_t stream, DType type) {
  const Random random(3, stream);
  Values values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = test::rounded(random.normal(i), type);
  }
  return values;
}

void expect_undisturbed(MatmulForm form, DType weights, MatmulPrecision precision) {
  constexpr int64_t kCalls = 20000;
  constexpr int64_t M = 19;
  constexpr int64_t N = 32;
  constexpr int64_t K = 128;
  const auto backend = make_backend("cpu", {.threads = 1, .matmul_precision = precision});
  const bool transposed = form == MatmulForm::tn;
  const Tensor a =
      upload(*backend, random_values(M * K, 1, DType::f32), transposed ? Shape{K, M} : Shape{M, K});
  const Tensor b = upload(*backend, random_values(K * N, 2, weights), {K, N}, weights);
  const Tensor c = poisoned(*backend, {M, N});
  const MatmulArgs args{.form = form};
  backend->matmul(a, b, args, c);
  const Values wanted = test::download(*backend, c);
  handled = 0;
  const ManySignals signals;
  for (int64_t i = 0; i < kCalls; ++i) {
    backend->matmul(a, b, args, c);
    ASSERT_EQ(test::download(*backend, c), wanted) << "call " << i;
  }
  EXPECT_GT(handled, 10);
}

TEST(Signals, DoNotDisturbProducts) {
  for (const MatmulForm form : {MatmulForm::nn, MatmulForm::tn}) {
    expect_undisturbed(form, DType::f32, MatmulPrecision::highest);
  }
  expect_undisturbed(MatmulForm::nn, DType::bf16, MatmulPrecision::medium);
}

}  // namespace
}  // namespace wick
