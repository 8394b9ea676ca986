// The ceilings of a GPU, by the back end's own products, copies and recorder.
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "wick/backend/registry.h"

namespace wick::bench {

namespace {

constexpr MeasureOptions kFew = {.minimum_samples = 10,
                                 .minimum_seconds = 0.05,
                                 .maximum_seconds = 1.0,
                                 .fewest_samples = 3,
                                 .warm_up_calls = 3};

double product_gflops(Backend& be, int64_t size, DType weights) {
  const DType type = be.activation_type(weights);
  const Tensor x = be.allocate({size, size}, type);
  const Tensor w = be.allocate({size, size}, weights);
  const Tensor y = be.allocate({size, size}, type);
  // Numbers as in models: a GPU multiplies zeros faster, for want of heat.
  NormalPool(be, 1.0F, type).fill(1, x);
  NormalPool(be, 0.02F, weights).fill(2, w);
  const Timing timing = measure(
      [&] {
        be.matmul(x, w, {}, y);
        be.synchronize();
      },
      kFew);
  const auto n = static_cast<double>(size);
  return 2.0 * n * n * n / timing.median() * 1e-9;
}

double copy_gbs(Backend& be, int64_t bytes) {
  const Tensor from = be.allocate({bytes / 4}, DType::f32);
  const Tensor to = be.allocate({bytes / 4}, DType::f32);
  be.fill(1.0F, from);
  const Timing timing = measure(
      [&] {
        be.copy(from, to);
        be.synchronize();
      },
      kFew);
  return 2.0 * static_cast<double>(bytes) / timing.median() * 1e-9;
}

// Seconds of a graph of so many small kernels, each after the one before, awaited.
double chain_seconds(Backend& be, int kernels) {
  const Tensor x = be.allocate({256}, DType::f32);
  be.fill(0.0F, x);
  const std::unique_ptr<Recorder> recorder = be.make_recorder();
  return measure(
             [&] {
               recorder->run(0, [&] {
                 for (int i = 0; i < kernels; ++i) {
                   be.add(x, x, x);
                 }
               });
               be.synchronize();
             },
             kFew)
      .median();
}

}  // namespace

MachineLimits measure_device(Backend& backend, const DeviceWork& work) {
  MachineLimits limits;
  for (const DeviceDescription& device : describe_devices()) {
    if (device.name.starts_with(backend.name())) {  // all GPUs of a machine are taken to be alike
      limits.processor = device.text.substr(0, device.text.find(':'));
      limits.detail = device.text;
      break;
    }
  }
  limits.matmul_gflops = product_gflops(backend, work.bf16_product, DType::bf16);
  limits.fma_gflops_all = product_gflops(backend, work.f32_product, DType::f32);
  limits.read_gbs_all = copy_gbs(backend, work.copy_bytes);
  constexpr int kKernels = 1000;
  limits.launch_seconds = chain_seconds(backend, 1);
  limits.kernel_seconds =
      (chain_seconds(backend, kKernels) - limits.launch_seconds) / (kKernels - 1);
  return limits;
}

}  // namespace wick::bench
