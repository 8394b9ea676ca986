// The concrete back ends by name.
#include "wick/backend/registry.h"

#include "wick/backend/cpu/cpu_backend.h"
#include "wick/backend/cpu/device.h"
#include "wick/base/error.h"
#ifdef WICK_CUDA
#include "wick/backend/cuda/cuda_backend.h"
#include "wick/backend/cuda/device.h"
#endif

namespace wick {

namespace {

#ifdef WICK_CUDA
constexpr bool kHasCuda = true;
bool cuda_answers() {
  return cuda::device_count() > 0;
}
std::unique_ptr<Backend> make_cuda() {
  return std::make_unique<cuda::CudaBackend>();
}
std::vector<std::string> cuda_devices() {
  return cuda::describe_devices();
}
#else
constexpr bool kHasCuda = false;
bool cuda_answers() {
  return false;
}
std::unique_ptr<Backend> make_cuda() {
  fail("this build has no CUDA: build it with WICK_CUDA=ON");
}
std::vector<std::string> cuda_devices() {
  return {};
}
#endif

}  // namespace

std::vector<std::string_view> backend_names() {
  std::vector<std::string_view> names = {"cpu"};
  if (cuda_answers()) {
    names.push_back("cuda");
  }
  return names;
}

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "auto") {
    return make_backend(backend_names().back(), options);
  }
  if (device == "cpu") {
    return std::make_unique<cpu::CpuBackend>(options.threads);
  }
  if (device == "cuda") {
    return make_cuda();
  }
  fail("unknown device \"{}\": this build has cpu{} (and auto, the best there is)", device,
       kHasCuda ? ", cuda" : "");
}

std::vector<DeviceDescription> describe_devices() {
  std::vector<DeviceDescription> devices = {{"cpu", cpu::describe_device()}};
  for (std::string& text : cuda_devices()) {
    devices.push_back({"cuda", std::move(text)});
  }
  return devices;
}

}  // namespace wick
