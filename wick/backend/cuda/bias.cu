// Bias of a product whose epilogue cannot add it.
#include "wick/backend/cuda/elements.cuh"
#include "wick/backend/cuda/matmul.h"

namespace wick::cuda {

namespace {

constexpr int kThreads = 256;

// One thread an element of c [M, N].
template <class C, class Bias>
__global__ void bias_kernel(const Bias* bias, int64_t N, int64_t elements, C* c) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < elements) {
    c[i] = from_float<C>(to_float(c[i]) + to_float(bias[i % N]));
  }
}

}  // namespace

void add_bias(const Context& context, const Tensor& bias, const Tensor& c) {
  const int64_t elements = c.elements();
  if (elements == 0) {
    return;
  }
  const auto blocks = static_cast<unsigned>((elements + kThreads - 1) / kThreads);
  with_activation(c, [&](auto* to) {
    with_weight(bias, [&](const auto* from) {
      bias_kernel<<<blocks, kThreads, 0, context.stream>>>(from, c.columns(), elements, to);
      check_launch("add_bias");
    });
  });
}

}  // namespace wick::cuda
