// Products at medium matmul precision: of every instruction set against the scalar reference with
// rounded operands.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "tests/reference/lora.h"
#include "tests/reference/matmul.h"
#include "tests/support/conformance.h"
#include "wick/backend/registry.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::upload_ids;
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

// An adapter in bf16 is taken as it is, by few rows and by many, alone and one of several.
TEST_P(Conformance, ForwardProductsTakeAdaptersInBf16) {
  if (GetParam().device != "cpu") {
    GTEST_SKIP() << "a choice of the CPU alone: elsewhere adapters are f32";
  }
  take_matmul_precision(MatmulPrecision::medium);
  for (const auto& backend : backends_) {
    ASSERT_EQ(backend->adapter_type(DType::bf16), DType::bf16);
    ASSERT_EQ(backend->adapter_type(DType::f32), DType::f32);
  }
  constexpr int64_t in = 333;
  constexpr int64_t out = 75;
  constexpr std::array<int64_t, 3> kRanks = {16, 3, 40};
  std::vector<Values> a;
  std::vector<Values> b;
  std::vector<reference::Adapter<double>> adapters;
  for (const int64_t rank : kRanks) {
    a.push_back(random(rank * in, DType::bf16));
    b.push_back(random(out * rank, DType::bf16, 0.25));  // so that sums stay near 1
  }
  for (size_t i = 0; i < kRanks.size(); ++i) {
    adapters.push_back({a[i].data(), b[i].data(), kRanks[i], 0.5 + static_cast<double>(i)});
  }
  const Values weight = random(out * in, DType::bf16);
  const auto factors_on = [&](Backend& backend) {
    std::vector<LoraFactors> factors;
    for (size_t i = 0; i < kRanks.size(); ++i) {
      factors.push_back({upload(backend, a[i], {kRanks[i], in}, DType::bf16),
                         upload(backend, b[i], {out, kRanks[i]}, DType::bf16),
                         static_cast<float>(adapters[i].scaling)});
    }
    return factors;
  };
  for (const int64_t T : {1, 6, 16, 40}) {
    for (const bool several : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} several {}", T, several));
      std::vector<int32_t> rows = several ? random_ids(T, 4) : std::vector<int32_t>(T, 1);
      for (int32_t& row : rows) {
        row -= 1;  // -1: no adapter
      }
      const Values x = random(T * in);
      Values s(T * 40);
      Values delta(T * out);
      reference::lora_forward(x.data(), adapters.data(), rows.data(), {T, in, out, 40}, s.data(),
                              delta.data());
      Values y = delta;
      reference::matmul(x.data(), weight.data(), static_cast<const double*>(nullptr),
                        MatmulForm::nt, true, {T, out, in}, y.data());
      expect_outputs(
          [&](Backend& backend) {
            const std::vector<LoraFactors> factors = factors_on(backend);
            const Tensor row_adapter = several ? upload_ids(backend, rows, {T}) : Tensor();
            const Tensor on_device = upload(backend, x, {T, in});
            std::vector<Tensor> outputs = {poisoned(backend, {T, out})};
            backend.lora_delta(on_device, factors, row_adapter, poisoned(backend, {T, 40}),
                               outputs[0]);
            if (T <= 16) {  // of more rows, x would be rounded
              LinearTerm term;
              term.weight = upload(backend, weight, {out, in}, DType::bf16);
              term.adapters = factors;
              term.row_adapter = row_adapter;
              term.s = poisoned(backend, {T, 40});
              term.y = poisoned(backend, {T, out});
              backend.linears(on_device, std::span(&term, 1));
              outputs.push_back(term.y);
            }
            return outputs;
          },
          T <= 16 ? std::vector<Values>{delta, y} : std::vector<Values>{delta});
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
