// Linear layers with adapters over many rows, of every back end against the scalar reference; and
// that what an adapter changes is not lost in rounding.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>

#include "tests/reference/lora.h"
#include "tests/reference/matmul.h"
#include "tests/support/conformance.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

struct Layer {
  int64_t out;
  int64_t rank;  // 0: no adapter
  bool biased;
  DType bias = DType::bf16;
};

// Layers that some launches share and others do not: equal and other ranks, a rank beyond what one
// launch takes, outputs that are no multiple of eight, more layers than a launch has room for.
const std::vector<std::vector<Layer>> kGroups = {
    {{72, 16, true}, {520, 16, false}, {136, 16, true, DType::f32}},
    {{72, 8, false}, {131, 8, true}, {40, 3, true}, {24, 0, true}},
    {{72, 24, true, DType::f16}, {72, 64, false}, {72, 70, true}},
    {{8, 4, false}, {16, 4, true}, {24, 4, false}, {32, 4, false}, {40, 4, true}, {48, 4, false}},
};

TEST_P(Conformance, LinearsOfManyRowsAreProductsWithTheirAdapters) {
  constexpr int64_t in = 136;
  const DType type = activations();
  for (const int64_t T : {128, 131, 300}) {
    for (size_t group = 0; group < kGroups.size(); ++group) {
      SCOPED_TRACE(fmt::format("T {} group {}", T, group));
      const std::vector<Layer>& layers = kGroups[group];
      const Values x = random(T * in, type);
      std::vector<Values> weights, biases, as, bs, expected;
      for (const Layer& layer : layers) {
        weights.push_back(random(layer.out * in, DType::bf16));
        biases.push_back(random(layer.out, layer.bias));
        as.push_back(random(layer.rank * in));
        bs.push_back(random(layer.out * layer.rank));
        Values y(T * layer.out);
        reference::matmul(x.data(), weights.back().data(),
                          layer.biased ? biases.back().data() : nullptr, MatmulForm::nt, false,
                          {T, layer.out, in}, y.data());
        if (layer.rank > 0) {
          Values s(T * layer.rank);
          const reference::Adapter<double> adapter{as.back().data(), bs.back().data(), layer.rank,
                                                   0.75};
          reference::lora_forward(x.data(), &adapter, nullptr, {T, in, layer.out, layer.rank},
                                  s.data(), y.data());
          expected.push_back(s);
        }
        expected.push_back(y);
      }
      expect_outputs(
          [&](Backend& backend) {
            std::vector<LoraFactors> factors(layers.size());
            std::vector<LinearTerm> terms(layers.size());
            std::vector<Tensor> outputs;
            for (size_t i = 0; i < layers.size(); ++i) {
              const auto& [out, rank, biased, bias_type] = layers[i];
              terms[i].weight = upload(backend, weights[i], {out, in}, DType::bf16);
              terms[i].y = poisoned(backend, {T, out}, type);
              if (biased) {
                terms[i].bias = upload(backend, biases[i], {out}, bias_type);
              }
              if (rank > 0) {
                factors[i] = {upload(backend, as[i], {rank, in}),
                              upload(backend, bs[i], {out, rank}), 0.75F};
                terms[i].adapters = std::span(&factors[i], 1);
                terms[i].s = poisoned(backend, {T, rank}, type);
                outputs.push_back(terms[i].s);
              }
              outputs.push_back(terms[i].y);
            }
            backend.linears(upload(backend, x, {T, in}, type), terms);
            return outputs;
          },
          expected);
    }
  }
}

// A first step of an adapter changes outputs of some 0.6 by 1e-3, a quarter of what two neighbours
// in bf16 lie apart. Rounded before the change is added, most of them stay as they were, and the
// loss falls less than it should; rounded after it, they change by as much on average.
TEST_P(Conformance, LinearsKeepChangesThatBf16DoesNotResolve) {
  constexpr int64_t in = 136;
  constexpr int64_t out = 520;
  constexpr int64_t R = 4;
  constexpr double kChange = 1e-3;
  const DType type = activations();
  for (const int64_t T : {1, 8, 40, 128, 512}) {
    SCOPED_TRACE(fmt::format("T {}", T));
    Values x = random(T * in, type);
    Values weight = random(out * in, DType::bf16, 0.16);
    for (int64_t t = 0; t < T; ++t) {
      x[t * in] = 1;
    }
    // The adapter reads the column that is 1, the layer does not.
    for (int64_t i = 0; i < out; ++i) {
      weight[i * in] = 0;
    }
    Values a(R * in);
    a[0] = 1;
    const Values b(out * R, kChange);
    Values y(T * out);
    reference::matmul(x.data(), weight.data(), static_cast<const double*>(nullptr), MatmulForm::nt,
                      false, {T, out, in}, y.data());
    for (const auto& backend : backends_) {
      LinearTerm term;
      const LoraFactors factors{upload(*backend, a, {R, in}), upload(*backend, b, {out, R}), 1};
      term.weight = upload(*backend, weight, {out, in}, DType::bf16);
      term.adapters = std::span(&factors, 1);
      term.s = poisoned(*backend, {T, R}, type);
      term.y = poisoned(*backend, {T, out}, type);
      backend->linears(upload(*backend, x, {T, in}, type), {&term, 1});
      const Values changed = test::download(*backend, term.y);
      double mean = 0;
      double square = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        mean += (changed[i] - y[i]) / static_cast<double>(y.size());
        square += std::pow(changed[i] - y[i] - kChange, 2) / static_cast<double>(y.size());
      }
      // Five standard deviations of the mean, and what bf16 makes of the change itself.
      const double chance = 5 * std::sqrt(square / static_cast<double>(y.size()));
      EXPECT_NEAR(mean / kChange, 1, 0.01 + chance / kChange);
      EXPECT_LT(chance / kChange, 0.5) << "too few values to tell";
    }
  }
}

}  // namespace
}  // namespace wick
