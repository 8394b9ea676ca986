// For tests that call kernels of the CUDA back end below the seam, in files *_cuda_test.cpp.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/support/conformance.h"
#include "wick/backend/cuda/compiled.h"
#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/memory.h"
#include "wick/backend/registry.h"

namespace wick::test {

// A back end for tensors, and a context for kernels with a stream and memory of its own. Test is
// ::testing::Test or a TestWithParam. Skips where no device answers.
template <class Test>
class CudaKernels : public Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "no CUDA device answers";
    }
    backend_ = make_backend("cuda");
    ASSERT_EQ(cudaStreamCreate(&context_.stream), cudaSuccess);
    memory_ = std::make_unique<cuda::DeviceMemory>();
    context_.memory = memory_.get();
    cudaDeviceProp properties{};
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    context_.multiprocessors = properties.multiProcessorCount;
    context_.compute_capability =
        std::min(properties.major * 10 + properties.minor, cuda::compiled_capability());
    context_.shared_bytes = properties.sharedMemPerBlockOptin;
  }
  void TearDown() override {
    memory_.reset();
    if (context_.stream != nullptr) {
      cudaStreamDestroy(context_.stream);
    }
  }

  // As Conformance::expect_outputs wants it of bf16.
  void expect_near(const Tensor& actual, const Values& expected, const char* what) {
    const Values values = download(*backend_, actual);
    ASSERT_EQ(values.size(), expected.size()) << what;
    double squares = 0;
    for (const double value : expected) {
      squares += value * value;
    }
    const double size = actual.dtype() == DType::bf16
                            ? 2 * std::sqrt(squares / static_cast<double>(expected.size()))
                            : 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_LE(std::abs(values[i] - expected[i]),
                tolerance(actual.dtype()) * (1 + size + std::abs(expected[i])))
          << what << " element " << i << ": " << values[i] << " for " << expected[i];
    }
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<cuda::DeviceMemory> memory_;
  cuda::Context context_;
};

}  // namespace wick::test
