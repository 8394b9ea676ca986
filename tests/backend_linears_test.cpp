// Linear layers with their adapters, gates and norms, of every back end against the scalar
// reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "tests/reference/lora.h"
#include "tests/reference/matmul.h"
#include "tests/reference/rowwise.h"
#include "tests/support/conformance.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::upload_ids;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

constexpr std::array kWeightTypes = {DType::f32, DType::bf16, DType::f16};

TEST_P(Conformance, LinearsAreProductsWithTheirAdapters) {
  constexpr int64_t in = 136;
  constexpr std::array<int64_t, 2> out = {72, 131};
  constexpr int64_t R = 8;
  const DType type = activations();
  for (const int64_t T : {0, 1, 3, 8, 9, 70}) {
    for (const DType dtype : kWeightTypes) {
      SCOPED_TRACE(fmt::format("T {} {}", T, name_of(dtype)));
      const Values x = random(T * in, type);
      const std::array weights = {random(out[0] * in, dtype), random(out[1] * in, dtype)};
      const Values bias = random(out[0], dtype);
      const Values a = random(R * in);
      const Values b = random(out[0] * R);
      Values y0(T * out[0]);
      Values y1(T * out[1]);
      Values s(T * R);
      reference::matmul(x.data(), weights[0].data(), bias.data(), MatmulForm::nt, false,
                        {T, out[0], in}, y0.data());
      reference::matmul(x.data(), weights[1].data(), static_cast<const double*>(nullptr),
                        MatmulForm::nt, false, {T, out[1], in}, y1.data());
      const reference::Adapter<double> adapter{a.data(), b.data(), R, 0.75};
      reference::lora_forward(x.data(), &adapter, nullptr, {T, in, out[0], R}, s.data(), y0.data());
      expect_outputs(
          [&](Backend& backend) {
            const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out[0], R}),
                                      0.75F};
            std::array<LinearTerm, 2> terms;
            for (size_t i = 0; i < terms.size(); ++i) {
              terms[i].weight = upload(backend, weights[i], {out[i], in}, dtype);
              terms[i].y = poisoned(backend, {T, out[i]}, type);
            }
            terms[0].bias = upload(backend, bias, {out[0]}, dtype);
            terms[0].adapters = std::span(&factors, 1);
            terms[0].s = poisoned(backend, {T, R}, type);
            backend.linears(upload(backend, x, {T, in}, type), terms);
            return std::vector{terms[0].y, terms[0].s, terms[1].y};
          },
          {y0, s, y1});
    }
  }
}

// gate(g, u) of two layers with adapters; few channels of a long input, and more than a round of
// them, beside the plain case.
TEST_P(Conformance, GatedLinearsAreLinearsAndTheirGate) {
  constexpr int64_t R = 16;
  const DType type = activations();
  for (const auto [T, in, F] : {std::array<int64_t, 3>{1, 136, 72},
                                {1, 5000, 40},
                                {1, 40, 5003},
                                {1, 37, 9},
                                {2, 136, 72},
                                {11, 136, 72},
                                {1, 896, 5003},
                                {1, 896, 4864},
                                {1, 3584, 1504},
                                {1, 4864, 300},
                                {1, 64, 20000}}) {
    for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      SCOPED_TRACE(fmt::format("T {} in {} F {}", T, in, F));
      const Values x = random(T * in, type);
      // Gates of some 1, as models have: in a product of two large sums each multiplies the other's
      // rounding.
      const std::array weights = {random(F * in, DType::bf16, 0.04),
                                  random(F * in, DType::bf16, 0.04)};
      const Values bias = random(F, DType::bf16);
      const std::array a = {random(R * in, DType::f32, 0.04), random(R * in, DType::f32, 0.04)};
      const std::array b = {random(F * R), random(F * R)};
      std::array<Values, 2> y = {Values(T * F), Values(T * F)};
      Values s(T * R);
      for (size_t i = 0; i < 2; ++i) {
        reference::matmul(x.data(), weights[i].data(), i == 0 ? bias.data() : nullptr,
                          MatmulForm::nt, false, {T, F, in}, y[i].data());
        const reference::Adapter<double> adapter{a[i].data(), b[i].data(), R, 0.75};
        reference::lora_forward(x.data(), &adapter, nullptr, {T, in, F, R}, s.data(), y[i].data());
      }
      Values h(T * F);
      reference::gate(y[0].data(), y[1].data(), activation, T * F, h.data());
      expect_outputs(
          [&](Backend& backend) {
            std::array<LoraFactors, 2> factors;
            std::array<LinearTerm, 2> terms;
            for (size_t i = 0; i < terms.size(); ++i) {
              factors[i] = {upload(backend, a[i], {R, in}), upload(backend, b[i], {F, R}), 0.75F};
              terms[i].weight = upload(backend, weights[i], {F, in}, DType::bf16);
              terms[i].adapters = std::span(&factors[i], 1);
              terms[i].s = poisoned(backend, {T, R}, type);
              terms[i].y = poisoned(backend, {T, F}, type);
            }
            terms[0].bias = upload(backend, bias, {F}, DType::bf16);
            const Tensor result = poisoned(backend, {T, F}, type);
            backend.gated_linears(upload(backend, x, {T, in}, type), terms, activation, result);
            return std::vector{result};
          },
          {h});
    }
  }
}

// Layers of some tens of rows: two with adapters of their own, one without, of few and of many
// channels, of a length that no power of two divides; of ranks that a kernel of layers shrinks to
// and of more. And of few rows, so large that a thread of the CPU has several tasks of several
// layers.
TEST_P(Conformance, LinearsOfOneToSomeTensOfRows) {
  const DType type = activations();
  for (const auto [T, in, F, rank] : {std::array<int64_t, 4>{64, 520, 44, 8},
                                      {1, 520, 501, 16},
                                      {3, 520, 501, 8},
                                      {33, 1032, 130, 8},
                                      {64, 1024, 44, 16},
                                      {49, 520, 130, 12},
                                      {32, 200, 1100, 8},
                                      {20, 896, 100, 16},
                                      {50, 72, 1100, 24},
                                      {17, 8, 33, 8}}) {
    SCOPED_TRACE(fmt::format("T {} in {} F {} rank {}", T, in, F, rank));
    const std::array<int64_t, 3> ranks = {rank, 16, 3};
    const std::array<int64_t, 3> out = {F, 36, F + 4};
    const Values x = random(T * in, type);
    std::array<Values, 3> weights, a, b, y, s;
    const Values bias = random(F, DType::bf16);
    for (size_t i = 0; i < 3; ++i) {
      // Outputs of some 1: of larger ones that cancel, the rounding of the parts would be what is
      // left.
      weights[i] = random(out[i] * in, DType::bf16, 0.04);
      a[i] = random(ranks[i] * in, DType::f32, 0.04);
      b[i] = random(out[i] * ranks[i]);
      y[i].resize(T * out[i]);
      s[i].resize(T * ranks[i]);
      reference::matmul(x.data(), weights[i].data(), i == 0 ? bias.data() : nullptr, MatmulForm::nt,
                        false, {T, out[i], in}, y[i].data());
      if (i != 1) {
        const reference::Adapter<double> adapter{a[i].data(), b[i].data(), ranks[i], 0.75};
        reference::lora_forward(x.data(), &adapter, nullptr, {T, in, out[i], ranks[i]}, s[i].data(),
                                y[i].data());
      }
    }
    expect_outputs(
        [&, T = T, in = in](Backend& backend) {
          std::array<LoraFactors, 3> factors;
          std::array<LinearTerm, 3> terms;
          for (size_t i = 0; i < 3; ++i) {
            terms[i].weight = upload(backend, weights[i], {out[i], in}, DType::bf16);
            terms[i].y = poisoned(backend, {T, out[i]}, type);
            factors[i] = {upload(backend, a[i], {ranks[i], in}),
                          upload(backend, b[i], {out[i], ranks[i]}), 0.75F};
            if (i != 1) {
              terms[i].adapters = std::span(&factors[i], 1);
              terms[i].s = poisoned(backend, {T, ranks[i]}, type);
            }
          }
          terms[0].bias = upload(backend, bias, {out[0]}, DType::bf16);
          backend.linears(upload(backend, x, {T, in}, type), terms);
          return std::vector{terms[0].y, terms[0].s, terms[1].y, terms[2].y, terms[2].s};
        },
        {y[0], s[0], y[1], y[2], s[2]});
  }
}

// A stream of one row or more is added up, normed and multiplied; few channels of a long input, and
// more than a warp keeps biases of, beside the plain case.
TEST_P(Conformance, NormedLinearsAreLinearsOfTheNorm) {
  struct Case {
    int64_t T, in;
    std::array<int64_t, 2> out;
    DType weights;
  };
  constexpr int64_t R = 8;
  constexpr float kEps = 1e-5F;
  const DType type = activations();
  const auto round = [&](Values& values) {
    for (double& value : values) {
      value = test::rounded(value, type);
    }
  };
  for (const auto& [T, in, out, weight_type] : {Case{1, 136, {72, 131}, DType::bf16},
                                                {1, 136, {72, 131}, DType::f32},
                                                {1, 896, {200, 40}, DType::bf16},
                                                {1, 5000, {40, 9}, DType::f16},
                                                {1, 8, {40000, 3}, DType::bf16},
                                                {1, 37, {9, 5}, DType::bf16},
                                                {3, 136, {72, 131}, DType::bf16},
                                                {70, 136, {72, 131}, DType::bf16},
                                                {1, 896, {5003, 40}, DType::bf16},
                                                {1, 1568, {2600, 9}, DType::bf16}}) {
    for (const bool sums : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} in {} {} sums {}", T, in, name_of(weight_type), sums));
      const Values left = random(T * in, type);
      const Values right = random(T * in, type);
      const Values norm_weight = random(in);
      Values sum = left;
      if (sums) {
        reference::add(left.data(), right.data(), T * in, sum.data());
        round(sum);
      }
      Values x(T * in);
      Values rstd(T);
      reference::rms_norm(sum.data(), norm_weight.data(), kEps, T, in, x.data(), rstd.data());
      round(x);
      const std::array weights = {random(out[0] * in, weight_type),
                                  random(out[1] * in, weight_type)};
      const Values bias = random(out[0], weight_type);
      // Small, so that s is some 1 and not a sum of thousands in which f32 rounds as many times.
      const Values a = random(R * in, DType::f32, 0.04);
      const Values b = random(out[0] * R);
      std::array<Values, 2> y = {Values(T * out[0]), Values(T * out[1])};
      Values s(T * R);
      for (size_t i = 0; i < y.size(); ++i) {
        reference::matmul(x.data(), weights[i].data(), i == 0 ? bias.data() : nullptr,
                          MatmulForm::nt, false, {T, out[i], in}, y[i].data());
      }
      const reference::Adapter<double> adapter{a.data(), b.data(), R, 0.75};
      reference::lora_forward(x.data(), &adapter, nullptr, {T, in, out[0], R}, s.data(),
                              y[0].data());
      expect_outputs(
          [&](Backend& backend) {
            const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out[0], R}),
                                      0.75F};
            std::array<LinearTerm, 2> terms;
            for (size_t i = 0; i < terms.size(); ++i) {
              terms[i].weight = upload(backend, weights[i], {out[i], in}, weight_type);
              terms[i].y = poisoned(backend, {T, out[i]}, type);
            }
            terms[0].bias = upload(backend, bias, {out[0]}, weight_type);
            terms[0].adapters = std::span(&factors, 1);
            terms[0].s = poisoned(backend, {T, R}, type);
            NormedInput input{.a = upload(backend, left, {T, in}, type),
                              .weight = upload(backend, norm_weight, {in}),
                              .eps = kEps,
                              .x = poisoned(backend, {T, in}, type)};
            if (sums) {
              input.b = upload(backend, right, {T, in}, type);
              input.sum = poisoned(backend, {T, in}, type);
            }
            backend.normed_linears(input, terms);
            return std::vector{terms[0].y, terms[0].s, terms[1].y, sums ? input.sum : input.a};
          },
          {y[0], s, y[1], sum});
    }
  }
}

TEST_P(Conformance, NormedGatedLinearsAreGatedLinearsOfTheNorm) {
  constexpr int64_t R = 16;
  constexpr float kEps = 1e-5F;
  const DType type = activations();
  for (const auto [T, in, F] : {std::array<int64_t, 3>{1, 136, 72},
                                {1, 5000, 40},
                                {1, 40, 5003},
                                {2, 136, 72},
                                {1, 896, 5003},
                                {1, 896, 4864},
                                {1, 3584, 1504},
                                {1, 1024, 11000}}) {
    SCOPED_TRACE(fmt::format("T {} in {} F {}", T, in, F));
    const Values left = random(T * in, type);
    const Values right = random(T * in, type);
    const Values norm_weight = random(in);
    const std::array weights = {random(F * in, DType::bf16, 0.04),
                                random(F * in, DType::bf16, 0.04)};
    const std::array a = {random(R * in, DType::f32, 0.04), random(R * in, DType::f32, 0.04)};
    const std::array b = {random(F * R), random(F * R)};
    Values sum(T * in);
    Values x(T * in);
    Values rstd(T);
    reference::add(left.data(), right.data(), T * in, sum.data());
    for (double& value : sum) {
      value = test::rounded(value, type);
    }
    reference::rms_norm(sum.data(), norm_weight.data(), kEps, T, in, x.data(), rstd.data());
    for (double& value : x) {
      value = test::rounded(value, type);
    }
    std::array<Values, 2> y = {Values(T * F), Values(T * F)};
    Values s(T * R);
    for (size_t i = 0; i < 2; ++i) {
      reference::matmul(x.data(), weights[i].data(), static_cast<const double*>(nullptr),
                        MatmulForm::nt, false, {T, F, in}, y[i].data());
      const reference::Adapter<double> adapter{a[i].data(), b[i].data(), R, 0.75};
      reference::lora_forward(x.data(), &adapter, nullptr, {T, in, F, R}, s.data(), y[i].data());
    }
    Values h(T * F);
    reference::gate(y[0].data(), y[1].data(), Activation::silu, T * F, h.data());
    expect_outputs(
        [&](Backend& backend) {
          std::array<LoraFactors, 2> factors;
          std::array<LinearTerm, 2> terms;
          for (size_t i = 0; i < terms.size(); ++i) {
            factors[i] = {upload(backend, a[i], {R, in}), upload(backend, b[i], {F, R}), 0.75F};
            terms[i].weight = upload(backend, weights[i], {F, in}, DType::bf16);
            terms[i].adapters = std::span(&factors[i], 1);
            terms[i].s = poisoned(backend, {T, R}, type);
            terms[i].y = poisoned(backend, {T, F}, type);
          }
          const NormedInput input{.a = upload(backend, left, {T, in}, type),
                                  .b = upload(backend, right, {T, in}, type),
                                  .weight = upload(backend, norm_weight, {in}),
                                  .eps = kEps,
                                  .sum = poisoned(backend, {T, in}, type),
                                  .x = poisoned(backend, {T, in}, type)};
          const Tensor result = poisoned(backend, {T, F}, type);
          backend.normed_gated_linears(input, terms, Activation::silu, result);
          return std::vector{result, input.sum};
        },
        {h, sum});
  }
}

TEST_P(Conformance, LinearsTakeAnAdapterForEachRow) {
  constexpr int64_t in = 200;
  constexpr int64_t out = 44;
  const std::array<int64_t, 3> ranks = {16, 3, 40};
  const DType type = activations();
  std::vector<Values> a;
  std::vector<Values> b;
  std::vector<reference::Adapter<double>> adapters;
  for (const int64_t rank : ranks) {
    a.push_back(random(rank * in));
    b.push_back(random(out * rank));
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    adapters.push_back({a[i].data(), b[i].data(), ranks[i], 0.5 + static_cast<double>(i)});
  }
  const Values weight = random(out * in, DType::bf16);
  for (const int64_t T : {1, 6, 8, 40}) {
    SCOPED_TRACE(fmt::format("T {}", T));
    std::vector<int32_t> rows = random_ids(T, 4);
    for (int32_t& row : rows) {
      row -= 1;  // -1: no adapter
    }
    const Values x = random(T * in, type);
    Values s(T * 40);
    Values y(T * out);
    reference::matmul(x.data(), weight.data(), static_cast<const double*>(nullptr), MatmulForm::nt,
                      false, {T, out, in}, y.data());
    reference::lora_forward(x.data(), adapters.data(), rows.data(), {T, in, out, 40}, s.data(),
                            y.data());
    expect_outputs(
        [&](Backend& backend) {
          std::vector<LoraFactors> factors;
          for (size_t i = 0; i < ranks.size(); ++i) {
            factors.push_back({upload(backend, a[i], {ranks[i], in}),
                               upload(backend, b[i], {out, ranks[i]}),
                               static_cast<float>(adapters[i].scaling)});
          }
          LinearTerm term;
          term.weight = upload(backend, weight, {out, in}, DType::bf16);
          term.adapters = factors;
          term.row_adapter = upload_ids(backend, rows, {T});
          term.s = poisoned(backend, {T, 40}, type);
          term.y = poisoned(backend, {T, out}, type);
          backend.linears(upload(backend, x, {T, in}, type), std::span(&term, 1));
          return std::vector{term.y};
        },
        {y});
  }
}

}  // namespace
}  // namespace wick
