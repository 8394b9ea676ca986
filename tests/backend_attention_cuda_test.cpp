// CUDA's attention as older devices have it: without the instructions of compute capability 9.0,
// and with as little shared memory a block as each capability gives.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "tests/reference/attention.h"
#include "tests/support/cuda_kernels.h"
#include "wick/backend/cuda/attention.h"
#include "wick/base/random.h"

namespace wick {
namespace {

using test::poisoned;
using test::upload;
using test::Values;

struct OlderDevice {
  const char* name;
  int capability;
  size_t shared_bytes;  // that a block may have (CUDA C++ Programming Guide, Compute Capabilities)
  DType type;
};
void PrintTo(const OlderDevice& device, std::ostream* out) {
  *out << device.name;
}

class AttentionOfOlderDevices : public test::CudaKernels<::testing::TestWithParam<OlderDevice>> {
 protected:
  void SetUp() override {
    CudaKernels::SetUp();
    if (IsSkipped()) {
      return;
    }
    if (context_.shared_bytes < GetParam().shared_bytes) {
      GTEST_SKIP() << "a block has less shared memory here";
    }
    this_device_ = context_;
    context_.compute_capability = GetParam().capability;
    context_.shared_bytes = GetParam().shared_bytes;
  }

  Values random(int64_t count) {
    const Random numbers(7, draws_++);
    Values values(count);
    for (int64_t i = 0; i < count; ++i) {
      values[i] = test::rounded(2 * numbers.uniform(i) - 1, GetParam().type);
    }
    return values;
  }

  // Two sequences of so many tokens each, side by side.
  void expect_attention(int64_t H, int64_t G, int64_t D, int32_t first, int32_t second);

  cuda::Context this_device_;
  uint64_t draws_ = 0;
};

void AttentionOfOlderDevices::expect_attention(int64_t H, int64_t G, int64_t D, int32_t first,
                                               int32_t second) {
  SCOPED_TRACE(fmt::format("H {} G {} D {}, tokens {} and {}", H, G, D, first, second));
  const std::vector<int32_t> spans = {0, first, 0, first, first, second, first, second};
  const int64_t T = first + second;
  const AttentionArgs args{.causal = true, .window = 0, .scale = 0.3F};
  const Values q = random(T * H * D);
  const Values k = random(T * G * D);
  const Values v = random(T * G * D);
  const Values d_o = random(T * H * D);
  Values o(q.size());
  Values lse(T * H);
  const reference::AttentionSize size{H, G, D, 2};
  reference::attention(q.data(), k.data(), v.data(), spans.data(), args, size, o.data(),
                       lse.data());
  Values dq(q.size());
  Values dk(k.size());
  Values dv(v.size());
  reference::attention_backward<double>(
      {q.data(), k.data(), v.data(), o.data(), lse.data(), d_o.data()}, spans.data(), args, size,
      dq.data(), dk.data(), dv.data());

  const DType type = GetParam().type;
  const Shape q_shape{T, H, D};
  const Shape k_shape{T, G, D};
  const Tensor of_q = upload(*backend_, q, q_shape, type);
  const Tensor of_k = upload(*backend_, k, k_shape, type);
  const Tensor of_v = upload(*backend_, v, k_shape, type);
  const Tensor of_d_o = upload(*backend_, d_o, q_shape, type);
  const Tensor of_spans = test::upload_ids(*backend_, spans, {2, 4});
  const auto outputs_on = [&](const cuda::Context& context) {
    const Tensor of_o = poisoned(*backend_, q_shape, type);
    const Tensor of_lse = poisoned(*backend_, {T, H});
    const Tensor of_dq = poisoned(*backend_, q_shape, type);
    const Tensor of_dk = poisoned(*backend_, k_shape, type);
    const Tensor of_dv = poisoned(*backend_, k_shape, type);
    backend_->synchronize();
    cuda::attention(context, of_q, of_k, of_v, of_spans, args, of_o, of_lse);
    cuda::attention_backward(context, {of_q, of_k, of_v, of_o, of_lse, of_d_o}, of_spans, args,
                             of_dq, of_dk, of_dv);
    EXPECT_EQ(cudaStreamSynchronize(context.stream), cudaSuccess);
    return std::vector{of_o, of_lse, of_dq, of_dk, of_dv};
  };
  const std::vector<Tensor> outputs = outputs_on(context_);
  expect_near(outputs[0], o, "o");
  expect_near(outputs[1], lse, "lse");
  expect_near(outputs[2], dq, "dq");
  expect_near(outputs[3], dk, "dk");
  expect_near(outputs[4], dv, "dv");
  if (type == DType::f32 && D <= 128) {  // from the same tiles everywhere
    const std::vector<Tensor> here = outputs_on(this_device_);
    for (size_t i = 0; i < here.size(); ++i) {
      EXPECT_EQ(test::download(*backend_, outputs[i]), test::download(*backend_, here[i]));
    }
  }
}

std::string name_of_device(const ::testing::TestParamInfo<OlderDevice>& which) {
  return which.param.name;
}

constexpr size_t kKiB = 1024;
INSTANTIATE_TEST_SUITE_P(, AttentionOfOlderDevices,
                         ::testing::Values(OlderDevice{"a_8_0_bf16", 80, 163 * kKiB, DType::bf16},
                                           OlderDevice{"a_8_0_f32", 80, 163 * kKiB, DType::f32},
                                           OlderDevice{"a_8_9_bf16", 89, 99 * kKiB, DType::bf16},
                                           OlderDevice{"a_8_9_f32", 89, 99 * kKiB, DType::f32}),
                         name_of_device);

TEST_P(AttentionOfOlderDevices, HeadsOf64) {
  expect_attention(6, 2, 64, 37, 70);
  expect_attention(6, 2, 36, 100, 70);
}

TEST_P(AttentionOfOlderDevices, HeadsOf96And128) {
  expect_attention(2, 1, 96, 40, 93);
  expect_attention(3, 1, 100, 90, 33);
  expect_attention(8, 2, 128, 65, 70);
}

TEST_P(AttentionOfOlderDevices, HeadsOf200And256) {
  expect_attention(2, 1, 200, 33, 40);
  expect_attention(4, 1, 256, 65, 20);
}

}  // namespace
}  // namespace wick
