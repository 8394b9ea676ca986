// LoRA kernels of every back end against the scalar reference.
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

struct LoraShape {
  int64_t T, in, out, R;
};

// The last are of many rows, which a back end may do otherwise.
constexpr std::array<LoraShape, 14> kLoraShapes = {{{0, 8, 8, 4},
                                                    {1, 1, 1, 1},
                                                    {1, 67, 131, 8},
                                                    {3, 131, 67, 3},
                                                    {64, 96, 128, 8},
                                                    {17, 48, 61, 17},
                                                    {130, 257, 129, 16},
                                                    {65, 1030, 515, 8},
                                                    {9, 33, 70, 32},
                                                    {5, 70, 40, 64},
                                                    {150, 136, 392, 12},
                                                    {260, 528, 72, 8},
                                                    {333, 40, 280, 100},
                                                    {517, 70, 133, 16}}};

TEST_P(Conformance, LoraForwardOfOneAdapter) {
  for (const auto [T, in, out, R] : kLoraShapes) {
    SCOPED_TRACE(fmt::format("T {} in {} out {} R {}", T, in, out, R));
    const DType type = activations();
    const Values x = random(T * in, type);
    const Values a = random(R * in, type);
    const Values b = random(out * R, type);
    const Values before = random(T * out, type);
    Values s(T * R);
    Values y = before;
    const reference::Adapter<double> adapter{a.data(), b.data(), R, 0.75};
    reference::lora_forward(x.data(), &adapter, nullptr, {T, in, out, R}, s.data(), y.data());
    expect_outputs(
        [&, T = T, in = in, out = out, R = R](Backend& backend) {
          const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out, R}),
                                    0.75F};
          const Tensor device_s = poisoned(backend, {T, R}, type);
          const Tensor device_y = upload(backend, before, {T, out}, type);
          backend.lora_forward(upload(backend, x, {T, in}, type), std::span(&factors, 1), {},
                               device_s, device_y);
          return std::vector{device_s, device_y};
        },
        {s, y});
  }
}

TEST_P(Conformance, LoraForwardOfManyAdaptersOverTheRows) {
  constexpr int64_t T = 83;
  constexpr int64_t in = 131;
  constexpr int64_t out = 70;
  constexpr int64_t widest = 11;
  const std::array<int64_t, 3> ranks = {8, 1, widest};
  std::vector<int32_t> rows = random_ids(T, 4);
  for (int32_t& row : rows) {
    row -= 1;  // -1: no adapter
  }
  std::vector<Values> a;
  std::vector<Values> b;
  std::vector<reference::Adapter<double>> adapters;
  for (const int64_t rank : ranks) {
    a.push_back(random(rank * in));
    b.push_back(random(out * rank));
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    adapters.push_back({a[i].data(), b[i].data(), ranks[i], 0.5 * (1.0 + static_cast<double>(i))});
  }
  const DType type = activations();
  const Values x = random(T * in, type);
  const Values before = random(T * out, type);
  Values s(T * widest);
  Values y = before;
  reference::lora_forward(x.data(), adapters.data(), rows.data(), {T, in, out, widest}, s.data(),
                          y.data());
  expect_outputs(
      [&](Backend& backend) {
        std::vector<LoraFactors> factors;
        for (size_t i = 0; i < ranks.size(); ++i) {
          factors.push_back({upload(backend, a[i], {ranks[i], in}),
                             upload(backend, b[i], {out, ranks[i]}),
                             static_cast<float>(adapters[i].scaling)});
        }
        const Tensor device_s = poisoned(backend, {T, widest}, type);
        const Tensor device_y = upload(backend, before, {T, out}, type);
        backend.lora_forward(upload(backend, x, {T, in}, type), factors,
                             upload_ids(backend, rows, {T}), device_s, device_y);
        return std::vector{device_y};
      },
      {y});
}

// Over memory that holds anything; rows without an adapter become 0.
TEST_P(Conformance, LoraDeltaOverwrites) {
  for (const auto [T, in, out, R] : kLoraShapes) {
    for (const bool grouped : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} in {} out {} R {} grouped {}", T, in, out, R, grouped));
      const DType type = activations();
      const Values x = random(T * in, type);
      const Values a = random(R * in, DType::f32, 0.04);  // outputs of some 1: see below
      const Values b = random(out * R);
      std::vector<int32_t> rows = random_ids(T, 2);
      for (int32_t& row : rows) {
        row -= 1;
      }
      Values s(T * R);
      Values y(T * out);
      const reference::Adapter<double> adapter{a.data(), b.data(), R, 0.75};
      reference::lora_forward(x.data(), &adapter, grouped ? rows.data() : nullptr, {T, in, out, R},
                              s.data(), y.data());
      expect_outputs(
          [&, T = T, in = in, out = out, R = R](Backend& backend) {
            const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out, R}),
                                      0.75F};
            const Tensor device_y = poisoned(backend, {T, out}, type);
            backend.lora_delta(upload(backend, x, {T, in}, type), std::span(&factors, 1),
                               grouped ? upload_ids(backend, rows, {T}) : Tensor(),
                               poisoned(backend, {T, R}, type), device_y);
            return std::vector{device_y};
          },
          {y});
    }
  }
}

// Two layers of one input: the first with a bias and adapters, the second bare.
TEST_P(Conformance, LoraBackward) {
  for (const auto [T, in, out, R] : kLoraShapes) {
    for (const bool with_dx : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} in {} out {} R {} dx {}", T, in, out, R, with_dx));
      const DType type = activations();
      const Values x = random(T * in, type);
      const Values s = random(T * R, type);
      const Values dy = random(T * out, type, 0.2);
      const Values a = random(R * in, type);
      const Values b = random(out * R, type);
      Values ds(T * R);
      Values da = random(R * in);
      Values db = random(out * R);
      Values dx = random(T * in, type);
      const std::array before = {da, db, dx};
      const reference::Adapter<double> adapter{a.data(), b.data(), R, 1.5};
      reference::lora_backward(x.data(), s.data(), dy.data(), adapter, {T, in, out, R}, ds.data(),
                               da.data(), db.data(), with_dx ? dx.data() : nullptr);
      expect_outputs(
          [&, T = T, in = in, out = out, R = R](Backend& backend) {
            const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out, R}),
                                      1.5F};
            const Tensor device_ds = poisoned(backend, {T, R}, type);
            const Tensor device_da = upload(backend, before[0], {R, in});
            const Tensor device_db = upload(backend, before[1], {out, R});
            const Tensor device_dx = upload(backend, before[2], {T, in}, type);
            backend.lora_backward(upload(backend, x, {T, in}, type),
                                  upload(backend, s, {T, R}, type),
                                  upload(backend, dy, {T, out}, type), factors, device_ds,
                                  device_da, device_db, with_dx ? device_dx : Tensor());
            return std::vector{device_da, device_db, device_dx};
          },
          {da, db, dx});
    }
  }
}

TEST_P(Conformance, LoraLinearBackwardIsTheProductAndTheAdapters) {
  for (const auto [T, in, out, R] : kLoraShapes) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} in {} out {} R {} +{}", T, in, out, R, accumulate));
      const DType type = activations();
      const Values x = random(T * in, type);
      const Values s = random(T * R, type);
      const Values dy = random(T * out, type, 0.2);
      const Values weight = random(out * in, DType::bf16, 0.2);
      const Values a = random(R * in, type);
      const Values b = random(out * R, type);
      Values ds(T * R);
      Values da = random(R * in);
      Values db = random(out * R);
      Values dx = random(T * in, type);
      const std::array before = {da, db, dx};
      reference::matmul(dy.data(), weight.data(), static_cast<const double*>(nullptr),
                        MatmulForm::nn, accumulate, {T, in, out}, dx.data());
      const reference::Adapter<double> adapter{a.data(), b.data(), R, 1.5};
      reference::lora_backward(x.data(), s.data(), dy.data(), adapter, {T, in, out, R}, ds.data(),
                               da.data(), db.data(), dx.data());
      expect_outputs(
          [&, T = T, in = in, out = out, R = R](Backend& backend) {
            const LoraFactors factors{upload(backend, a, {R, in}), upload(backend, b, {out, R}),
                                      1.5F};
            const LoraLinearInputs inputs{upload(backend, x, {T, in}, type),
                                          upload(backend, s, {T, R}, type),
                                          upload(backend, dy, {T, out}, type),
                                          upload(backend, weight, {out, in}, DType::bf16), factors};
            const Tensor device_da = upload(backend, before[0], {R, in});
            const Tensor device_db = upload(backend, before[1], {out, R});
            const Tensor device_dx = upload(backend, before[2], {T, in}, type);
            backend.lora_linear_backward(inputs, accumulate, poisoned(backend, {T, R}, type),
                                         device_da, device_db, device_dx);
            return std::vector{device_da, device_db, device_dx};
          },
          {da, db, dx});
    }
  }
}

}  // namespace
}  // namespace wick
