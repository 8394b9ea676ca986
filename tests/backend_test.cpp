// Memory, dense products and LoRA kernels of every back end against the scalar reference.
#include "wick/core/backend.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

#include "tests/reference/lora.h"
#include "tests/reference/matmul.h"
#include "tests/reference/rowwise.h"
#include "tests/support/conformance.h"
#include "tests/support/message_of.h"
#include "wick/backend/registry.h"
#include "wick/base/error.h"

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

TEST(Registry, AnUnknownDeviceIsNamed) {
  try {
    make_backend("tpu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("unknown device \"tpu\": this build has cpu"))
        << error.what();
  }
}

TEST(Registry, AGpuIsNamedByItsNumber) {
  for (const char* device : {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"}) {
    const std::string message = test::message_of([&] { make_backend(device); });
    EXPECT_TRUE(message.starts_with(fmt::format("unknown device \"{}\": ", device))) << message;
  }
}

TEST_P(Conformance, MemoryIsCountedAndGivenBack) {
  Backend& backend = *backends_[0];
  const size_t before = backend.memory().in_use_bytes;
  {
    const Tensor a = backend.allocate({1000, 100}, DType::f32);
    const Tensor b = backend.allocate({1000, 100}, DType::bf16);
    EXPECT_GE(backend.memory().in_use_bytes, before + 600000);
  }
  EXPECT_EQ(backend.memory().in_use_bytes, before);
  EXPECT_GE(backend.memory().peak_bytes, before + 600000);
  backend.reset_peak_memory();
  EXPECT_EQ(backend.memory().peak_bytes, before);
}

TEST_P(Conformance, AnAbsurdSizeIsAnErrorThatSaysHowMuch) {
  try {
    backends_[0]->allocate({int64_t{1} << 20, int64_t{1} << 24}, DType::f32);
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("out of memory: 67108864.0 MiB asked for, "), std::string::npos)
        << message;
    EXPECT_NE(message.find(" MiB free"), std::string::npos) << message;
  }
  const int64_t huge = int64_t{1} << 40;
  EXPECT_THROW(backends_[0]->allocate({huge, huge}, DType::f32), Error);
}

TEST_P(Conformance, TensorsOutliveTheirBackend) {
  const Tensor survivor = backends_[0]->allocate({100}, DType::f32);
  backends_[0].reset();
}

TEST_P(Conformance, AdoptedBytesAreReadWhateverTheirAlignment) {
  for (const DType dtype : kWeightTypes) {
    const Values wanted = random(12, dtype);
    for (const size_t offset : {0, 1, 2, 3, 4}) {
      Backend& backend = *backends_[0];
      const Tensor source = upload(backend, wanted, {3, 4}, dtype);
      auto file = std::make_shared<std::vector<std::byte>>(offset + source.bytes());
      backend.download(source, std::span(*file).subspan(offset));
      const Tensor adopted = backend.adopt(std::span(*file).subspan(offset), file, {3, 4}, dtype);
      file.reset();
      const Tensor copied = poisoned(backend, {3, 4}, dtype);
      backend.copy(adopted, copied);
      EXPECT_EQ(test::download(backend, copied), wanted);
      const Tensor wide = poisoned(backend, {3, 4});
      backend.cast(adopted, wide);
      EXPECT_EQ(test::download(backend, wide), wanted);
    }
  }
}

struct MatmulShape {
  int64_t M, N, K;
};

// Beside odd sizes: more than one block of depth, more rows than are packed at a time, and several
// blocks of a library's product.
constexpr std::array<MatmulShape, 12> kMatmulShapes = {{{0, 5, 3},
                                                        {4, 0, 3},
                                                        {3, 5, 0},
                                                        {1, 1, 1},
                                                        {1, 131, 67},
                                                        {3, 37, 1031},
                                                        {7, 64, 16},
                                                        {17, 97, 53},
                                                        {131, 67, 96},
                                                        {29, 131, 1031},
                                                        {270, 290, 33},
                                                        {7950, 12, 3}}};

// oneDNN would start a team of threads of its own, beside the pool's and spinning.
TEST(CpuMatmul, ProductsByTheLibraryStartNoThreads) {
  const std::filesystem::path tasks = "/proc/self/task";
  if (!std::filesystem::exists(tasks)) {
    GTEST_SKIP() << "counts the threads in /proc";
  }
  const auto threads = [&] {
    return std::distance(std::filesystem::directory_iterator(tasks), {});
  };
  const auto backend = make_backend("cpu", {1});
  const Tensor a = upload(*backend, Values(256 * 256, 1.0), {256, 256});
  const Tensor c = poisoned(*backend, {256, 256});
  const auto before = threads();
  for (const MatmulForm form : {MatmulForm::nn, MatmulForm::tn}) {
    backend->matmul(a, a, {form}, c);
    EXPECT_EQ(test::download(*backend, c)[0], 256.0);
  }
  const auto medium =
      make_backend("cpu", {.threads = 1, .matmul_precision = MatmulPrecision::medium});
  const Tensor b = upload(*medium, Values(256 * 256, 1.0), {256, 256}, DType::bf16);
  for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn}) {
    medium->matmul(a, b, {form}, c);
    EXPECT_EQ(test::download(*medium, c)[0], 256.0);
  }
  EXPECT_EQ(threads(), before);
}

TEST_P(Conformance, Matmul) {
  for (const auto [M, N, K] : kMatmulShapes) {
    for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn, MatmulForm::tn}) {
      for (const DType dtype : kWeightTypes) {
        for (const int mode : {0, 1, 2}) {  // plain; bias; accumulate and bias
          SCOPED_TRACE(fmt::format("M {} N {} K {} form {} {} mode {}", M, N, K,
                                   static_cast<int>(form), name_of(dtype), mode));
          const DType type = activations();
          const Values a = random(M * K, type);
          const Values b = random(K * N, dtype);
          const Values bias = random(N, dtype);
          const Values before = random(M * N, type);
          Values expected = before;
          reference::matmul(a.data(), b.data(), mode > 0 ? bias.data() : nullptr, form, mode == 2,
                            {M, N, K}, expected.data());
          const Shape a_shape = form == MatmulForm::tn ? Shape{K, M} : Shape{M, K};
          const Shape b_shape = form == MatmulForm::nt ? Shape{N, K} : Shape{K, N};
          expect_outputs(
              [&](Backend& backend) {
                const Tensor c = mode == 2 ? upload(backend, before, {M, N}, type)
                                           : poisoned(backend, {M, N}, type);
                const Tensor wide =
                    mode == 2 ? upload(backend, before, {M, N}) : poisoned(backend, {M, N});
                const Tensor device_bias = upload(backend, bias, {N}, dtype);
                MatmulArgs args{.form = form, .accumulate = mode == 2};
                args.bias = mode > 0 ? &device_bias : nullptr;
                const Tensor device_a = upload(backend, a, a_shape, type);
                const Tensor device_b = upload(backend, b, b_shape, dtype);
                backend.matmul(device_a, device_b, args, c);
                backend.matmul(device_a, device_b, args, wide);
                return std::vector{c, wide};
              },
              {expected, expected});
        }
      }
    }
  }
}

TEST_P(Conformance, AddColumnSums) {
  for (const auto& [T, N] : {std::pair{0, 3}, {1, 1}, {13, 67}, {70, 301}}) {
    const Values x = random(T * N, activations());
    const Values before = random(N);
    Values expected = before;
    reference::add_column_sums(x.data(), T, N, expected.data());
    expect_outputs(
        [&, t = T, n = N](Backend& backend) {
          const Tensor out = upload(backend, before, {n});
          backend.add_column_sums(upload(backend, x, {t, n}, activations()), out);
          return std::vector{out};
        },
        {expected});
  }
}

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
// channels, and of a length that no power of two divides.
TEST_P(Conformance, LinearsOfSomeTensOfRows) {
  const DType type = activations();
  constexpr std::array<int64_t, 3> ranks = {8, 16, 3};
  for (const auto [T, in, F] : {std::array<int64_t, 3>{64, 520, 44},
                                {33, 1032, 130},
                                {32, 200, 1100},
                                {50, 72, 1100},
                                {17, 8, 33}}) {
    SCOPED_TRACE(fmt::format("T {} in {} F {}", T, in, F));
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
