// Kernels that normalise rows, of every back end, against the scalar reference.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

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

constexpr std::array kWeightTypes = {DType::f32, DType::bf16, DType::f16};

struct RowShape {
  int64_t T, C;
};

constexpr std::array<RowShape, 7> kRowShapes = {
    {{0, 5}, {1, 1}, {1, 67}, {3, 16}, {13, 131}, {64, 96}, {70, 1030}}};

TEST_P(Conformance, RmsNormAndItsGradient) {
  for (const auto [T, C] : kRowShapes) {
    for (const DType dtype : kWeightTypes) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(fmt::format("T {} C {} {}", T, C, name_of(dtype)));
        const DType type = activations();
        const Values x = random(T * C, type);
        const Values weight = random(C, dtype);
        const Values dy = random(T * C, type);
        const std::array before = {random(T * C, type), random(C)};
        Values y(T * C);
        Values rstd(T);
        Values dx = before[0];
        Values dweight = before[1];
        reference::rms_norm(x.data(), weight.data(), 1e-5F, T, C, y.data(), rstd.data());
        reference::rms_norm_backward<double>({x.data(), weight.data(), rstd.data(), dy.data()},
                                             accumulate, T, C, dx.data(), dweight.data());
        expect_outputs(
            [&, T = T, C = C](Backend& backend) {
              const Shape shape{T, C};
              const Tensor device_x = upload(backend, x, shape, type);
              const Tensor device_weight = upload(backend, weight, {C}, dtype);
              const Tensor device_y = poisoned(backend, shape, type);
              const Tensor unaided = poisoned(backend, shape, type);
              const Tensor device_rstd = poisoned(backend, {T});
              backend.rms_norm(device_x, device_weight, 1e-5F, device_y, device_rstd);
              backend.rms_norm(device_x, device_weight, 1e-5F, unaided, {});
              const Tensor device_dy = upload(backend, dy, shape, type);
              const Tensor device_dx = accumulate ? upload(backend, before[0], shape, type)
                                                  : poisoned(backend, shape, type);
              const Tensor frozen_dx =
                  upload(backend, test::download(backend, device_dx), shape, type);
              const Tensor device_dweight = upload(backend, before[1], {C});
              backend.rms_norm_backward(device_x, device_weight, device_rstd, device_dy, accumulate,
                                        device_dx, device_dweight);
              backend.rms_norm_backward(device_x, device_weight, device_rstd, device_dy, accumulate,
                                        frozen_dx, {});
              return std::vector{device_y,  unaided,   device_rstd,
                                 device_dx, frozen_dx, device_dweight};
            },
            {y, y, rstd, dx, dx, dweight});
      }
    }
  }
}

TEST_P(Conformance, AddRmsNormIsTheNormOfTheSum) {
  for (const auto [T, C] : kRowShapes) {
    for (const DType dtype : kWeightTypes) {
      const DType type = activations();
      const Values a = random(T * C, type);
      const Values b = random(T * C, type);
      const Values weight = random(C, dtype);
      Values sum(T * C);
      Values y(T * C);
      Values rstd(T);
      reference::add(a.data(), b.data(), T * C, sum.data());
      reference::rms_norm(sum.data(), weight.data(), 1e-5F, T, C, y.data(), rstd.data());
      expect_outputs(
          [&, T = T, C = C, shape = Shape{T, C}](Backend& backend) {
            const Tensor left = upload(backend, a, shape, type);
            const Tensor right = upload(backend, b, shape, type);
            const Tensor device_weight = upload(backend, weight, {C}, dtype);
            const Tensor device_sum = poisoned(backend, shape, type);
            const Tensor device_y = poisoned(backend, shape, type);
            const Tensor in_place_y = poisoned(backend, shape, type);
            const Tensor device_rstd = poisoned(backend, {T});
            backend.add_rms_norm(left, right, device_weight, 1e-5F, device_sum, device_y,
                                 device_rstd);
            backend.add_rms_norm(left, right, device_weight, 1e-5F, left, in_place_y, {});
            return std::vector{device_sum, device_y, device_rstd, left, in_place_y};
          },
          {sum, y, rstd, sum, y});
    }
  }
}

TEST_P(Conformance, LayerNormAndItsGradient) {
  for (const auto [T, C] : kRowShapes) {
    for (const DType dtype : kWeightTypes) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(fmt::format("T {} C {} {}", T, C, name_of(dtype)));
        const DType type = activations();
        const Values x = random(T * C, type);
        const Values weight = random(C, dtype);
        const Values bias = random(C, dtype);
        const Values dy = random(T * C, type);
        const std::array before = {random(T * C, type), random(C), random(C)};
        Values y(T * C);
        Values without_bias(T * C);
        Values moments(2 * T);
        Values dx = before[0];
        Values dweight = before[1];
        Values dbias = before[2];
        reference::layer_norm(x.data(), weight.data(), Values(C).data(), 0.1F, T, C,
                              without_bias.data(), moments.data());
        reference::layer_norm(x.data(), weight.data(), bias.data(), 0.1F, T, C, y.data(),
                              moments.data());
        reference::layer_norm_backward<double>({x.data(), weight.data(), moments.data(), dy.data()},
                                               accumulate, T, C, dx.data(), dweight.data(),
                                               dbias.data());
        expect_outputs(
            [&, T = T, C = C](Backend& backend) {
              const Shape shape{T, C};
              const Tensor device_x = upload(backend, x, shape, type);
              const Tensor device_weight = upload(backend, weight, {C}, dtype);
              const Tensor device_bias = upload(backend, bias, {C}, dtype);
              const Tensor device_y = poisoned(backend, shape, type);
              const Tensor unbiased = poisoned(backend, shape, type);
              const Tensor mean_rstd = poisoned(backend, {T, 2});
              backend.layer_norm(device_x, device_weight, device_bias, 0.1F, device_y, mean_rstd);
              backend.layer_norm(device_x, device_weight, {}, 0.1F, unbiased, {});
              const Tensor device_dy = upload(backend, dy, shape, type);
              const Tensor device_dx = accumulate ? upload(backend, before[0], shape, type)
                                                  : poisoned(backend, shape, type);
              const Tensor frozen_dx =
                  upload(backend, test::download(backend, device_dx), shape, type);
              const Tensor device_dweight = upload(backend, before[1], {C});
              const Tensor device_dbias = upload(backend, before[2], {C});
              backend.layer_norm_backward(device_x, device_weight, mean_rstd, device_dy, accumulate,
                                          device_dx, device_dweight, device_dbias);
              backend.layer_norm_backward(device_x, device_weight, mean_rstd, device_dy, accumulate,
                                          frozen_dx, {}, {});
              return std::vector{device_y,  unbiased,       mean_rstd,   device_dx,
                                 frozen_dx, device_dweight, device_dbias};
            },
            {y, without_bias, moments, dx, dx, dweight, dbias});
      }
    }
  }
}

TEST_P(Conformance, LayerNormOfALargeMeanKeepsItsVariance) {
  // Values 4096 +- 1: a mean square less a squared mean would have no digit left in f32.
  Values x(64, 4095.0);
  std::fill(x.begin(), x.begin() + 32, 4097.0);
  Values y(64, -1.0);
  std::fill(y.begin(), y.begin() + 32, 1.0);
  expect_outputs(
      [&](Backend& backend) {
        const Tensor out = poisoned(backend, {1, 64});
        backend.layer_norm(upload(backend, x, {1, 64}), upload(backend, Values(64, 1.0), {64}), {},
                           0.0F, out, {});
        return std::vector{out};
      },
      {y});
}

TEST_P(Conformance, Softmax) {
  for (const auto [T, C] : kRowShapes) {
    const DType type = activations();
    const Values x = random(T * C, type, 12.0);
    Values y(T * C);
    reference::softmax(x.data(), T, C, y.data());
    expect_outputs(
        [&, shape = Shape{T, C}](Backend& backend) {
          const Tensor in_place = upload(backend, x, shape, type);
          const Tensor apart = poisoned(backend, shape, type);
          backend.softmax(in_place, apart);
          backend.softmax(in_place, in_place);
          return std::vector{apart, in_place};
        },
        {y, y});
  }
}

TEST_P(Conformance, SoftmaxOfExtremeInputsIsFiniteAndOfNaNIsNaN) {
  const Values x = {3e38, -3e38, 3e38, -INFINITY};
  expect_outputs(
      [&](Backend& backend) {
        const Tensor y = poisoned(backend, {1, 4});
        backend.softmax(upload(backend, x, {1, 4}), y);
        return std::vector{y};
      },
      {{0.5, 0.0, 0.5, 0.0}});
  Backend& backend = *backends_[0];
  Values diverged = random(67);
  diverged[41] = std::nan("");
  const Tensor row = upload(backend, diverged, {1, 67});
  backend.softmax(row, row);
  for (const double value : test::download(backend, row)) {
    ASSERT_TRUE(std::isnan(value));
  }
}

}  // namespace
}  // namespace wick
