// Products at medium matmul precision: of every instruction set against the scalar reference with
// rounded operands.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "tests/reference/matmul.h"
#include "tests/support/conformance.h"
#include "wick/backend/registry.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

// On instruction sets without products of bf16 numbers too. Exact products of rounded numbers, so
// the tolerance is that of f32. A GPU's bf16 cases test the same.
TEST_P(Conformance, MatmulAtMediumPrecisionRoundsWhatMeetsBf16Weights) {
  if (GetParam().device != "cpu") {
    GTEST_SKIP() << "a choice of the CPU alone; a GPU's bf16 cases are in backend_test";
  }
  take_matmul_precision(MatmulPrecision::medium);
  constexpr int64_t kFewRows = 16;  // are multiplied as they are
  // Odd sizes, around the border of few rows, more than a block of depth, and several blocks of a
  // library's product.
  constexpr std::array<reference::MatmulSize, 17> kShapes = {{{0, 5, 3},
                                                              {10, 0, 3},
                                                              {10, 5, 0},
                                                              {1, 131, 67},
                                                              {16, 33, 65},
                                                              {17, 1, 1},
                                                              {17, 33, 65},
                                                              {17, 97, 53},
                                                              {131, 67, 96},
                                                              {29, 131, 1031},
                                                              {140, 130, 31},
                                                              {270, 290, 33},
                                                              {300, 515, 129},
                                                              {7950, 12, 3},
                                                              {11, 3, 5000},
                                                              {20, 1541, 33},
                                                              {530, 800, 17}}};
  for (const auto [M, N, K] : kShapes) {
    for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn, MatmulForm::tn}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (const int mode : {0, 1, 2}) {  // plain; bias; accumulate and bias
          SCOPED_TRACE(fmt::format("M {} N {} K {} form {} {} mode {}", M, N, K,
                                   static_cast<int>(form), name_of(dtype), mode));
          const Values a = random(M * K);
          const Values b = random(K * N, dtype);
          const Values bias = random(N, DType::f32);
          Values left = a;
          if (dtype == DType::bf16 && form != MatmulForm::tn && M > kFewRows) {
            for (double& value : left) {
              value = test::rounded(value, DType::bf16);
            }
          }
          const Values before = random(M * N);
          Values expected = before;
          reference::matmul(left.data(), b.data(), mode > 0 ? bias.data() : nullptr, form,
                            mode == 2, {M, N, K}, expected.data());
          const Shape a_shape = form == MatmulForm::tn ? Shape{K, M} : Shape{M, K};
          const Shape b_shape = form == MatmulForm::nt ? Shape{N, K} : Shape{K, N};
          expect_outputs(
              [&](Backend& backend) {
                const Tensor c =
                    mode == 2 ? upload(backend, before, {M, N}) : poisoned(backend, {M, N});
                const Tensor device_bias = upload(backend, bias, {N});
                MatmulArgs args{.form = form, .accumulate = mode == 2};
                args.bias = mode > 0 ? &device_bias : nullptr;
                backend.matmul(upload(backend, a, a_shape), upload(backend, b, b_shape, dtype),
                               args, c);
                return std::vector{c};
              },
              {expected});
        }
      }
    }
  }
}

// Great depth is cut into parts, and those into pieces. Of small whole numbers every sum is exact,
// in any order.
TEST_P(Conformance, MatmulOfGreatDepthAddsUpAllParts) {
  if (GetParam().device != "cpu") {
    GTEST_SKIP() << "a way of the CPU alone";
  }
  constexpr int64_t M = 19;
  constexpr int64_t N = 9;
  const auto small = [](int64_t count) {
    Values values(count);
    for (int64_t i = 0; i < count; ++i) {
      values[i] = static_cast<double>(i * i % 7 % 3) - 1;
    }
    return values;
  };
  const Values bias = small(N);
  const Values before = small(M * N);
  for (const MatmulPrecision precision : {MatmulPrecision::highest, MatmulPrecision::medium}) {
    take_matmul_precision(precision);
    for (const int64_t K : {16384, 70001}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const bool accumulate : {false, true}) {
          SCOPED_TRACE(fmt::format("K {} {} {}", K, name_of(dtype), accumulate));
          const Values a = small(M * K);
          const Values b = small(K * N);
          Values expected = before;
          reference::matmul(a.data(), b.data(), bias.data(), MatmulForm::nn, accumulate, {M, N, K},
                            expected.data());
          for (const auto& backend : backends_) {
            const Tensor c = upload(*backend, before, {M, N});
            const Tensor device_bias = upload(*backend, bias, {N});
            MatmulArgs args{.form = MatmulForm::nn, .accumulate = accumulate};
            args.bias = &device_bias;
            backend->matmul(upload(*backend, a, {M, K}), upload(*backend, b, {K, N}, dtype), args,
                            c);
            EXPECT_EQ(test::download(*backend, c), expected);
          }
        }
      }
    }
  }
}

TEST_P(Conformance, MatmulAtMediumPrecisionKeepsWhatIsNoNumber) {
  if (GetParam().device != "cpu") {
    GTEST_SKIP() << "a choice of the CPU alone; a GPU's bf16 cases are in backend_test";
  }
  take_matmul_precision(MatmulPrecision::medium);
  constexpr int64_t M = 19;
  constexpr int64_t N = 37;
  constexpr int64_t K = 53;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Values a(M * K, 1.0);
  a[3 * K + 7] = std::numeric_limits<double>::quiet_NaN();
  a[5 * K + 52] = kInfinity;
  a[18 * K] = -kInfinity;
  a[9 * K + 1] = 3.4e38;  // more than the largest bf16
  for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn}) {
    for (const auto& backend : backends_) {
      const Tensor c = poisoned(*backend, {M, N});
      const Shape b_shape = form == MatmulForm::nt ? Shape{N, K} : Shape{K, N};
      backend->matmul(upload(*backend, a, {M, K}),
                      upload(*backend, Values(K * N, 1.0), b_shape, DType::bf16), {form}, c);
      const Values got = test::download(*backend, c);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          const double value = got[m * N + n];
          const double wanted = m == 5 || m == 9 ? kInfinity : m == 18 ? -kInfinity : K;
          EXPECT_TRUE(m == 3 ? std::isnan(value) : value == wanted)
              << m << " " << n << " " << value;
        }
      }
    }
  }
}

TEST(CpuMatmul, PrecisionIsHighestUnlessAskedFor) {
  EXPECT_EQ(make_backend("cpu")->matmul_precision(DType::bf16), MatmulPrecision::highest);
  const auto medium = make_backend("cpu", {.matmul_precision = MatmulPrecision::medium});
  EXPECT_EQ(medium->matmul_precision(DType::bf16), MatmulPrecision::medium);
  EXPECT_EQ(medium->matmul_precision(DType::f32), MatmulPrecision::highest);
  EXPECT_EQ(medium->matmul_precision(DType::f16), MatmulPrecision::highest);
  const auto fastest = make_backend("cpu", {.matmul_precision = std::nullopt});
  EXPECT_EQ(fastest->matmul_precision(DType::bf16), fastest_matmul_precision());
}

}  // namespace
}  // namespace wick
