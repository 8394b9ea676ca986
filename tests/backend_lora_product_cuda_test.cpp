// A frozen layer and its adapter as one product (wick/backend/cuda/lora_product.h), at sizes where
// the back end would not choose it, and where it does.
#include <cuda_runtime.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "tests/reference/lora.h"
#include "tests/support/cuda_kernels.h"
#include "wick/backend/cuda/lora_product.h"
#include "wick/base/random.h"

namespace wick {
namespace {

using test::poisoned;
using test::upload;
using test::Values;

struct Sizes {
  int64_t T, N, K, R;
  bool biased = false;
  DType bias = DType::f32;
};

// Values of a layer that bf16 holds exactly but for the adapter, and outputs of some 1.
struct Layer {
  explicit Layer(const Sizes& of) : sizes(of) {
    x = random(sizes.T * sizes.K, DType::bf16, 1.0);
    weight = random(sizes.N * sizes.K, DType::bf16, 0.04);
    a = random(sizes.R * sizes.K, DType::f32, 0.04);
    b = random(sizes.N * sizes.R, DType::f32, 1.0);
    bias = random(sizes.N, sizes.bias, 1.0);
  }

  Values random(int64_t count, DType dtype, double magnitude) {
    const Random numbers(7, draws++);
    Values values(count);
    for (int64_t i = 0; i < count; ++i) {
      values[i] = test::rounded(magnitude * (2 * numbers.uniform(i) - 1), dtype);
    }
    return values;
  }

  Sizes sizes;
  Values x, weight, a, b, bias;
  uint64_t draws = 0;
};

constexpr double kScaling = 0.75;

class LoraProduct : public test::CudaKernels<::testing::Test> {
 protected:
  void SetUp() override {
    CudaKernels::SetUp();
    if (!IsSkipped() && context_.compute_capability != 90) {
      GTEST_SKIP() << "not a device of compute capability 9.0, or kernels built for less";
    }
  }

  // `factors` outlives the term.
  LinearTerm term_of(const Layer& layer, LoraFactors& factors) {
    const auto& [T, N, K, R, biased, bias_type] = layer.sizes;
    factors = {upload(*backend_, layer.a, {R, K}), upload(*backend_, layer.b, {N, R}),
               static_cast<float>(kScaling)};
    LinearTerm term;
    term.weight = upload(*backend_, layer.weight, {N, K}, DType::bf16);
    term.bias = biased ? upload(*backend_, layer.bias, {N}, bias_type) : Tensor();
    term.adapters = std::span(&factors, 1);
    term.s = poisoned(*backend_, {T, R}, DType::bf16);
    term.y = poisoned(*backend_, {T, N}, DType::bf16);
    return term;
  }

  void run(const Tensor& x, const LinearTerm& term) {
    backend_->synchronize();
    ASSERT_TRUE(cuda::lora_product(context_, x, term));
    ASSERT_EQ(cudaStreamSynchronize(context_.stream), cudaSuccess);
  }
};

// Full tiles and ends of tiles in each direction; a cluster's second block without rows; more row
// tiles than a band has, and more tiles than clusters; fewer steps than parts; every rank's kernel.
TEST_F(LoraProduct, IsTheLayerAndItsAdapter) {
  const std::vector<Sizes> cases = {{256, 256, 128, 16},
                                    {300, 264, 200, 16, true, DType::bf16},
                                    {1, 8, 8, 1},
                                    {100, 520, 64, 8, true, DType::f16},
                                    {129, 32, 72, 4},
                                    {515, 136, 1032, 64, true, DType::f32},
                                    {640, 512, 136, 32},
                                    {384, 776, 576, 24, true, DType::bf16},
                                    {257, 304, 328, 33},
                                    {4500, 1096, 64, 16},
                                    {9000, 264, 72, 16, true, DType::f32},
                                    {4100, 1544, 136, 64}};
  for (const Sizes& sizes : cases) {
    const auto& [T, N, K, R, biased, bias_type] = sizes;
    SCOPED_TRACE(fmt::format("T {} N {} K {} R {}", T, N, K, R));
    const Layer layer(sizes);
    Values y(T * N);
    Values s(T * R);
    reference::matmul(layer.x.data(), layer.weight.data(), biased ? layer.bias.data() : nullptr,
                      MatmulForm::nt, false, {T, N, K}, y.data());
    const reference::Adapter<double> adapter{layer.a.data(), layer.b.data(), R, kScaling};
    reference::lora_forward(layer.x.data(), &adapter, nullptr, {T, K, N, R}, s.data(), y.data());

    LoraFactors factors;
    const Tensor x = upload(*backend_, layer.x, {T, K}, DType::bf16);
    const LinearTerm term = term_of(layer, factors);
    run(x, term);
    expect_near(term.y, y, "y");
    expect_near(term.s, s, "s");

    LinearTerm again = term;
    again.s = poisoned(*backend_, {T, R}, DType::bf16);
    again.y = poisoned(*backend_, {T, N}, DType::bf16);
    run(x, again);
    EXPECT_EQ(test::download(*backend_, again.y), test::download(*backend_, term.y));
    EXPECT_EQ(test::download(*backend_, again.s), test::download(*backend_, term.s));
  }
}

TEST_F(LoraProduct, LeavesToOthersWhatItDoesNotTake) {
  const Layer layer({64, 64, 64, 8});
  LoraFactors factors;
  const Tensor x = upload(*backend_, layer.x, {64, 64}, DType::bf16);
  const LinearTerm term = term_of(layer, factors);
  LinearTerm bare = term;
  bare.adapters = {};
  EXPECT_FALSE(cuda::lora_product(context_, x, bare));
  LinearTerm by_row = term;
  by_row.row_adapter = test::upload_ids(*backend_, std::vector<int32_t>(64, 0), {64});
  EXPECT_FALSE(cuda::lora_product(context_, x, by_row));
  LinearTerm narrow = term;
  narrow.weight = upload(*backend_, layer.weight, {64, 64}, DType::f16);
  EXPECT_FALSE(cuda::lora_product(context_, x, narrow));
  EXPECT_FALSE(
      cuda::lora_product(context_, upload(*backend_, layer.x, {64, 64}, DType::f32), term));
  EXPECT_FALSE(cuda::lora_product_gains(context_, x, term));
}

// Sizes that the back end gives to the product: as a product and a low-rank change apart.
TEST_F(LoraProduct, ServesLargeLayersOfTheBackEnd) {
  const Layer layer({4096, 1024, 1024, 16, true, DType::bf16});
  LoraFactors factors;
  const Tensor x = upload(*backend_, layer.x, {4096, 1024}, DType::bf16);
  const LinearTerm term = term_of(layer, factors);
  ASSERT_TRUE(cuda::lora_product_gains(context_, x, term));
  backend_->linears(x, std::span(&term, 1));
  const Tensor y = poisoned(*backend_, {4096, 1024}, DType::bf16);
  const Tensor s = poisoned(*backend_, {4096, 16}, DType::bf16);
  backend_->matmul(x, term.weight, {.bias = &term.bias}, y);
  backend_->lora_forward(x, std::span(&factors, 1), Tensor(), s, y);
  expect_near(term.y, test::download(*backend_, y), "y");
  expect_near(term.s, test::download(*backend_, s), "s");
}

// dx = dy W + ds A and dx += of the same, with W [N, K]: K is the width of dx.
TEST_F(LoraProduct, MakesTheGradientOfTheInput) {
  const std::vector<Sizes> cases = {{256, 128, 256, 16},  {300, 200, 264, 8},  {100, 64, 520, 32},
                                    {515, 1032, 136, 64}, {384, 576, 776, 24}, {4500, 64, 1096, 16},
                                    {9000, 72, 264, 40}};
  for (const auto& [T, N, K, R, biased, bias_type] : cases) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(fmt::format("T {} N {} K {} R {} accumulate {}", T, N, K, R, accumulate));
      Layer values({T, N, K, R});
      const Values dy = values.random(T * N, DType::bf16, 1.0);
      const Values ds = values.random(T * R, DType::bf16, 1.0);
      const Values before = values.random(T * K, DType::bf16, 1.0);
      Values dx = before;
      reference::matmul(dy.data(), values.weight.data(), static_cast<const double*>(nullptr),
                        MatmulForm::nn, accumulate, {T, K, N}, dx.data());
      reference::matmul(ds.data(), values.a.data(), static_cast<const double*>(nullptr),
                        MatmulForm::nn, true, {T, K, R}, dx.data());
      const Tensor a = upload(*backend_, values.a, {R, K});
      cuda::InputGradient gradient{upload(*backend_, dy, {T, N}, DType::bf16),
                                   upload(*backend_, values.weight, {N, K}, DType::bf16),
                                   upload(*backend_, ds, {T, R}, DType::bf16),
                                   accumulate,
                                   {}};
      std::array<Values, 2> results;
      for (Values& result : results) {
        gradient.dx = accumulate ? upload(*backend_, before, {T, K}, DType::bf16)
                                 : poisoned(*backend_, {T, K}, DType::bf16);
        backend_->synchronize();
        ASSERT_TRUE(cuda::takes_lora_product_dx(context_, gradient));
        cuda::lora_product_dx(context_, gradient, a);
        ASSERT_EQ(cudaStreamSynchronize(context_.stream), cudaSuccess);
        result = test::download(*backend_, gradient.dx);
      }
      expect_near(gradient.dx, dx, "dx");
      EXPECT_EQ(results[0], results[1]);
    }
  }
}

// Sizes that the back end gives to the product: as a product and a low-rank change apart.
TEST_F(LoraProduct, ServesGradientsOfLargeLayersOfTheBackEnd) {
  constexpr int64_t T = 8192, N = 512, K = 3584, R = 16;
  Layer values({T, N, K, R});
  const LoraFactors factors{upload(*backend_, values.a, {R, K}),
                            upload(*backend_, values.b, {N, R}), 0.75F};
  const LoraLinearInputs inputs{
      upload(*backend_, values.x, {T, K}, DType::bf16),
      upload(*backend_, values.random(T * R, DType::bf16, 1.0), {T, R}, DType::bf16),
      upload(*backend_, values.random(T * N, DType::bf16, 0.2), {T, N}, DType::bf16),
      upload(*backend_, values.weight, {N, K}, DType::bf16), factors};
  const Values before = values.random(T * K, DType::bf16, 1.0);
  std::array<std::array<Tensor, 4>, 2> results;  // ds, da, db, dx
  for (size_t i = 0; i < 2; ++i) {
    auto& [ds, da, db, dx] = results[i];
    ds = poisoned(*backend_, {T, R}, DType::bf16);
    da = upload(*backend_, Values(R * K, 0.5), {R, K});
    db = upload(*backend_, Values(N * R, 0.5), {N, R});
    dx = upload(*backend_, before, {T, K}, DType::bf16);
    ASSERT_TRUE(cuda::lora_product_dx_gains(context_, {inputs.dy, inputs.weight, ds, true, dx}));
    if (i == 0) {
      backend_->lora_linear_backward(inputs, true, ds, da, db, dx);
    } else {
      backend_->Backend::lora_linear_backward(inputs, true, ds, da, db, dx);
    }
  }
  for (size_t i = 0; i < 4; ++i) {
    expect_near(results[0][i], test::download(*backend_, results[1][i]), "gradient");
  }
}

}  // namespace
}  // namespace wick
