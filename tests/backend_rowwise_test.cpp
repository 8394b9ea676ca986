// Row-wise kernels, loss and sampling of every back end against the scalar reference.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "tests/reference/loss.h"
#include "tests/reference/rowwise.h"
#include "tests/reference/sample.h"
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

struct RowShape {
  int64_t T, C;
};

// The last ones hold a row in a warp's part, in one to four runs a thread, and in none.
constexpr std::array<RowShape, 12> kRowShapes = {{{0, 5},
                                                  {1, 1},
                                                  {1, 67},
                                                  {3, 16},
                                                  {13, 131},
                                                  {64, 96},
                                                  {70, 1030},
                                                  {9, 256},
                                                  {3, 264},
                                                  {2, 2064},
                                                  {2, 4104},
                                                  {1, 16392}}};

TEST_P(Conformance, GateAndItsGradient) {
  for (const auto [T, C] : kRowShapes) {
    for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      const DType type = activations();
      const Values g = random(T * C, type, 6.0);
      const Values u = random(T * C, type);
      const Values dh = random(T * C, type);
      Values h(T * C);
      Values dg(T * C);
      Values du(T * C);
      reference::gate(g.data(), u.data(), activation, T * C, h.data());
      reference::gate_backward(g.data(), u.data(), dh.data(), activation, T * C, dg.data(),
                               du.data());
      expect_outputs(
          [&, shape = Shape{T, C}](Backend& backend) {
            const Tensor device_g = upload(backend, g, shape, type);
            const Tensor device_u = upload(backend, u, shape, type);
            const Tensor device_dh = upload(backend, dh, shape, type);
            const Tensor device_h = poisoned(backend, shape, type);
            const Tensor device_dg = poisoned(backend, shape, type);
            const Tensor device_du = poisoned(backend, shape, type);
            backend.gate(device_g, device_u, activation, device_h);
            backend.gate_backward(device_g, device_u, device_dh, activation, device_dg, device_du);
            backend.gate_backward(device_g, device_u, device_dh, activation, device_g, device_u);
            return std::vector{device_h, device_dg, device_du, device_g, device_u};
          },
          {h, dg, du, dg, du});
    }
  }
}

TEST_P(Conformance, GateOfExtremeInputsIsFinite) {
  const Values g = {-1e30, -200, -100, -89, 89, 100, 200, 1e30};
  const Values ones(g.size(), 1.0);
  const Values expected = {0, 0, 0, 0, 89, 100, 200, 1e30};
  const Values slopes = {0, 0, 0, 0, 1, 1, 1, 1};
  const DType type = activations();
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
    // The cube in gelu overflows for 1e30, so the last one is silu's alone.
    const int64_t count = activation == Activation::silu ? 8 : 7;
    const int64_t first = activation == Activation::silu ? 0 : 1;
    const auto part = [&](const Values& values) {
      return Values(values.begin() + first, values.begin() + count);
    };
    expect_outputs(
        [&, shape = Shape{count - first}](Backend& backend) {
          const Tensor device_g = upload(backend, part(g), shape, type);
          const Tensor device_one = upload(backend, part(ones), shape, type);
          const Tensor h = poisoned(backend, shape, type);
          const Tensor dg = poisoned(backend, shape, type);
          const Tensor du = poisoned(backend, shape, type);
          backend.gate(device_g, device_one, activation, h);
          backend.gate_backward(device_g, device_one, device_one, activation, dg, du);
          return std::vector{h, dg, du};
        },
        {part(expected), part(slopes), part(expected)});
  }
}

TEST_P(Conformance, AddAndFill) {
  for (const auto [T, C] : kRowShapes) {
    const DType type = activations();
    const Values a = random(T * C, type);
    const Values b = random(T * C, type);
    Values sum(T * C);
    reference::add(a.data(), b.data(), T * C, sum.data());
    expect_outputs(
        [&, shape = Shape{T, C}](Backend& backend) {
          const Tensor left = upload(backend, a, shape, type);
          const Tensor right = upload(backend, b, shape, type);
          const Tensor apart = poisoned(backend, shape, type);
          const Tensor filled = poisoned(backend, shape, type);
          backend.add(left, right, apart);
          backend.add(left, right, left);
          backend.fill(2.5F, filled);
          return std::vector{apart, left, filled};
        },
        {sum, sum, Values(T * C, 2.5)});
  }
}

TEST_P(Conformance, CastRoundsToNearestEven) {
  // Ties, subnormals of both narrow types, overflow, infinities, then ordinary numbers.
  Values x = {0.0,         -0.0,        1.00390625, 1.01171875,   1.00048828125, 1.00146484375,
              6e-8,        -3e-8,       2e-5,       65519.0,      65520.0,       1e38,
              3.39e38,     -3.4e38,     INFINITY,   -INFINITY,    1e-40,         -7e-39,
              6.103515e-5, 2.980232e-8, 8.9e-8,     0.3333333433, -2.7182817459, 1234.56787};
  for (const double value : random(200, DType::f32, 3.0)) {
    x.push_back(value);
  }
  const auto count = static_cast<int64_t>(x.size());
  for (const DType from : kWeightTypes) {
    for (const DType to : kWeightTypes) {
      for (const auto& backend : backends_) {
        const Tensor source = upload(*backend, x, {count}, from);
        const Tensor target = poisoned(*backend, {count}, to);
        backend->cast(source, target);
        const Values stored = test::download(*backend, source);
        const Values actual = test::download(*backend, target);
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(actual[i], test::rounded(stored[i], to))
              << stored[i] << " " << name_of(from) << " to " << name_of(to);
        }
      }
    }
  }
}

TEST_P(Conformance, CastKeepsNaN) {
  for (const DType from : kWeightTypes) {
    for (const DType to : kWeightTypes) {
      Backend& backend = *backends_[0];
      const Tensor target = upload(backend, Values(21, 1.0), {21}, to);
      backend.cast(poisoned(backend, {21}, from), target);
      for (const double value : test::download(backend, target)) {
        ASSERT_TRUE(std::isnan(value)) << name_of(from) << " to " << name_of(to);
      }
    }
  }
}

TEST_P(Conformance, Dropout) {
  for (const auto [T, C] : kRowShapes) {
    DropoutArgs args{0.3F, 99, 5, {}};
    constexpr int32_t kStep = 3;
    const DType type = activations();
    const Values x = random(T * C, type);
    Values y(T * C);
    reference::dropout(x.data(), args, kStep, T * C, y.data());
    expect_outputs(
        [&, shape = Shape{T, C}](Backend& backend) {
          args.step = upload_ids(backend, {kStep}, {1});
          const Tensor in_place = upload(backend, x, shape, type);
          const Tensor apart = poisoned(backend, shape, type);
          backend.dropout(in_place, args, apart);
          backend.dropout(in_place, args, in_place);
          return std::vector{apart, in_place};
        },
        {y, y});
  }
}

TEST_P(Conformance, GatherAndScatterAddRows) {
  constexpr int32_t kRows = 23;
  for (const auto [T, C] : kRowShapes) {
    for (const DType dtype : kWeightTypes) {
      const DType type = activations();
      const Values table = random(kRows * C, dtype);
      const std::vector<int32_t> ids = random_ids(T, kRows);
      const Values x = random(T * C, type);
      const Values before = random(kRows * C, type);
      Values y(T * C);
      Values sums = before;
      reference::gather_rows(table.data(), ids.data(), T, C, y.data());
      reference::scatter_add_rows(x.data(), ids.data(), T, C, sums.data());
      expect_outputs(
          [&, T = T, C = C](Backend& backend) {
            const Tensor device_ids = upload_ids(backend, ids, {T});
            const Tensor device_y = poisoned(backend, {T, C}, type);
            const Tensor device_sums = upload(backend, before, {kRows, C}, type);
            backend.gather_rows(upload(backend, table, {kRows, C}, dtype), device_ids, device_y);
            backend.scatter_add_rows(upload(backend, x, {T, C}, type), device_ids, device_sums);
            return std::vector{device_y, device_sums};
          },
          {y, sums});
    }
  }
}

TEST_P(Conformance, ManyRowsThatShareIdsAreAddedUp) {
  constexpr int64_t T = 3001;
  for (const int64_t C : {7, 24}) {
    for (const int32_t rows : {1, 40, 5000}) {
      const DType type = activations();
      const std::vector<int32_t> ids = random_ids(T, rows);
      const Values x = random(T * C, type, 1.0 / 16);
      Values sums(rows * C);
      reference::scatter_add_rows(x.data(), ids.data(), T, C, sums.data());
      expect_outputs(
          [&](Backend& backend) {
            const Tensor device_sums = upload(backend, Values(rows * C), {rows, C});
            backend.scatter_add_rows(upload(backend, x, {T, C}, DType::f32),
                                     upload_ids(backend, ids, {T}), device_sums);
            return std::vector{device_sums};
          },
          {sums});
    }
  }
}

// The tensor begins one element after the start of its memory.
Tensor upload_shifted(Backend& backend, Values values, const Shape& shape, DType type) {
  values.insert(values.begin(), 0.0);
  const auto count = static_cast<int64_t>(values.size());
  return upload(backend, values, {count}, type).part(1, shape);
}

TEST_P(Conformance, TensorsMayBeginAtAnyElement) {
  constexpr int64_t T = 5;
  constexpr int64_t C = 64;
  const Shape shape{T, C};
  const DType type = activations();
  const Values x = random(T * C, type);
  const Values u = random(T * C, type);
  const Values weight = random(C, type);
  const std::vector<int32_t> targets = random_ids(T, C);
  Values y(T * C);
  Values rstd(T);
  Values sum(T * C);
  Values h(T * C);
  Values losses(T);
  Values gradient = x;
  constexpr float kScale = 0.5F;
  reference::rms_norm(x.data(), weight.data(), 1e-5F, T, C, y.data(), rstd.data());
  reference::add(x.data(), u.data(), T * C, sum.data());
  reference::gate(x.data(), u.data(), Activation::silu, T * C, h.data());
  reference::cross_entropy(targets.data(), &kScale, T, C, gradient.data(), losses.data());
  expect_outputs(
      [&](Backend& backend) {
        const Tensor device_x = upload_shifted(backend, x, shape, type);
        const Tensor device_u = upload(backend, u, shape, type);
        const Tensor device_y = poisoned(backend, shape, type);
        const Tensor device_sum = upload_shifted(backend, Values(T * C), shape, type);
        const Tensor device_h = poisoned(backend, shape, type);
        const Tensor device_losses = poisoned(backend, {T});
        backend.rms_norm(device_x, upload_shifted(backend, weight, {C}, type), 1e-5F, device_y, {});
        backend.add(device_x, device_u, device_sum);
        backend.gate(device_x, device_u, Activation::silu, device_h);
        backend.cross_entropy(upload_ids(backend, targets, {T}), {upload(backend, {kScale}, {1})},
                              device_x, device_losses);
        return std::vector{device_y, device_sum, device_h, device_losses, device_x};
      },
      {y, sum, h, losses, gradient});
}

TEST_P(Conformance, CrossEntropyAndItsGradient) {
  for (const auto [n, V] : kRowShapes) {
    for (const bool gradient : {false, true}) {
      const DType type = activations();
      const Values logits = random(n * V, type, 12.0);
      std::vector<int32_t> targets = random_ids(n, static_cast<int32_t>(V));
      if (n > 1) {
        targets[n / 2] = -1;
      }
      constexpr float kScale = 0.125F;
      Values after = logits;
      Values losses(n);
      reference::cross_entropy(targets.data(), gradient ? &kScale : nullptr, n, V, after.data(),
                               losses.data());
      const Shape shape{n, V};
      expect_outputs(
          [&, n = n](Backend& backend) {
            const Tensor device_logits = upload(backend, logits, shape, type);
            const Tensor device_losses = poisoned(backend, {n});
            const Tensor scale = gradient ? upload(backend, {kScale}, {1}) : Tensor();
            backend.cross_entropy(upload_ids(backend, targets, {n}), {scale}, device_logits,
                                  device_losses);
            return std::vector{device_losses, gradient ? device_logits : device_losses};
          },
          {losses, gradient ? after : losses});
    }
  }
}

TEST_P(Conformance, CrossEntropyOfLongRows) {
  constexpr float kScale = 8.0F;
  for (const int64_t V : {40003, 151936}) {
    const DType type = activations();
    const Values logits = random(2 * V, type, 12.0);
    const std::vector<int32_t> targets = {static_cast<int32_t>(V - 1), 7};
    Values after = logits;
    Values losses(2);
    reference::cross_entropy(targets.data(), &kScale, 2, V, after.data(), losses.data());
    expect_outputs(
        [&](Backend& backend) {
          const Tensor device_logits = upload(backend, logits, {2, V}, type);
          const Tensor device_losses = poisoned(backend, {2});
          backend.cross_entropy(upload_ids(backend, targets, {2}), {upload(backend, {kScale}, {1})},
                                device_logits, device_losses);
          return std::vector{device_losses, device_logits};
        },
        {losses, after});
  }
}

TEST_P(Conformance, CrossEntropyOfNaNIsNaN) {
  // A diverged model must show in the loss: skipping NaN in the maximum would hide it.
  Backend& backend = *backends_[0];
  Values logits = random(67);
  logits[41] = std::nan("");
  const Tensor losses = upload(backend, {0.0}, {1});
  backend.cross_entropy(upload_ids(backend, {3}, {1}), {},
                        upload(backend, logits, {1, 67}, activations()), losses);
  EXPECT_TRUE(std::isnan(test::download(backend, losses)[0]));
}

int32_t drawn(Backend& backend, const SampleArgs& args, const Values& logits,
              DType dtype = DType::f32) {
  const Tensor id = upload_ids(backend, {-1}, {1});
  backend.sample(args, upload(backend, logits, {static_cast<int64_t>(logits.size())}, dtype), id);
  return static_cast<int32_t>(test::download(backend, id)[0]);
}

TEST_P(Conformance, GreedySamplingTakesTheFirstOfTheLargest) {
  for (const int64_t V : {1, 5, 16, 67, 1030, 32001}) {
    Values logits = random(V);
    logits[V / 2] = 3.0;
    logits[V - 1] = 3.0;
    EXPECT_EQ(drawn(*backends_[0], {}, logits, activations()), V / 2);
  }
  EXPECT_EQ(drawn(*backends_[0], {}, Values(19, -INFINITY)), 0);
}

TEST_P(Conformance, SamplingOfEqualLogitsKeepsTheFirst) {
  constexpr int32_t V = 5003;
  const Values equal(V, 1.0);
  const auto last_drawn = [&](int32_t top_k, float top_p) {
    const SampleArgs args{
        .temperature = 0.7F, .top_k = top_k, .top_p = top_p, .uniform = 0.99999994F};
    return drawn(*backends_[0], args, equal, activations());
  };
  EXPECT_EQ(last_drawn(3, 1.0F), 2);
  EXPECT_EQ(last_drawn(4, 0.5F), 1);
  EXPECT_EQ(last_drawn(5000, 1.0F), 4999);
  constexpr int32_t middle = V / 2;
  EXPECT_NEAR(last_drawn(0, 0.5F), middle, 1);
  EXPECT_EQ(last_drawn(0, 1.0F), V - 1);
}

TEST_P(Conformance, SamplingNeverDrawsWhatIsMasked) {
  constexpr int32_t V = 32000;
  Values logits(V, -INFINITY);
  logits[5] = -30.0;
  logits[29999] = -30.0;
  for (const int32_t top_k : {0, 1, 2, 50}) {
    for (const float top_p : {1.0F, 0.9F}) {
      SampleArgs args{.temperature = 1.0F, .top_k = top_k, .top_p = top_p};
      args.uniform = 0.25F;
      EXPECT_EQ(drawn(*backends_[0], args, logits, activations()), 5);
      args.uniform = 0.75F;
      EXPECT_EQ(drawn(*backends_[0], args, logits, activations()), top_k == 1 ? 5 : 29999);
    }
  }
}

struct DrawCases {
  std::vector<int64_t> vocabularies;
  std::vector<int32_t> top_k;
  std::vector<float> top_p, temperatures, uniforms;
};

// That `args` draw a token whose share of [0, 1) holds `args.uniform`.
void expect_drawn_by_share(Backend& backend, const SampleArgs& args, const Values& logits) {
  const std::vector<float> narrow(logits.begin(), logits.end());
  const auto shares = reference::sampling_shares(args, narrow);
  const int32_t id = drawn(backend, args, logits);
  const bool fits = std::ranges::any_of(shares, [&](const auto& share) {
    return share.id == id && share.begin - 1e-5 <= args.uniform && args.uniform <= share.end + 1e-5;
  });
  EXPECT_TRUE(fits) << "V " << logits.size() << " top_k " << args.top_k << " top_p " << args.top_p
                    << " temperature " << args.temperature << " uniform " << args.uniform
                    << " drew " << id;
}

class SamplingConformance : public Conformance {
 protected:
  void expect_draws(const DrawCases& cases) {
    const std::vector<int32_t> seen = {0, 3, 4};
    for (const int64_t V : cases.vocabularies) {
      Values logits = random(V, DType::f32, 8.0);
      for (int64_t i = 7; i < V; i += 7) {
        logits[i] = logits[i - 1];  // ties
      }
      for (const int32_t top_k : cases.top_k) {
        for (const float top_p : cases.top_p) {
          for (const float temperature : cases.temperatures) {
            SampleArgs args{.temperature = temperature, .top_k = top_k, .top_p = top_p};
            args.repetition_penalty = 1.3F;
            args.seen = seen;
            for (const float uniform : cases.uniforms) {
              args.uniform = uniform;
              expect_drawn_by_share(*backends_[0], args, logits);
            }
          }
        }
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, SamplingConformance,
                         ::testing::ValuesIn(test::conformance_cases()), test::name_of_case);

TEST_P(SamplingConformance, DrawsFromTheKeptTokensByTheirShares) {
  expect_draws({{5, 67, 1030, 20011},
                {0, 1, 4, 50},
                {1.0F, 0.9F, 0.3F, 1e-9F},
                {0.5F, 1.0F, 3.0F},
                {0.0F, 0.123F, 0.5F, 0.77F, 0.9999F}});
}

// Each kind once, for tools under which a draw takes long (tools/sanitize_cuda.sh).
TEST_P(SamplingConformance, BriefDrawsFromTheKeptTokensByTheirShares) {
  expect_draws({{67, 1030, 20011}, {0, 1, 50}, {1.0F, 0.9F}, {1.0F}, {0.5F}});
}

}  // namespace
}  // namespace wick
