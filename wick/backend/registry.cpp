// The concrete back ends by name.
#include "wick/backend/registry.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>

#include "wick/backend/cpu/cpu_backend.h"
#include "wick/backend/cpu/device.h"
#include "wick/base/error.h"
#include "wick/base/parallel.h"
#ifdef WICK_CUDA
#include "wick/backend/cuda/cuda_backend.h"
#include "wick/backend/cuda/device.h"
#endif
#ifdef WICK_NCCL
#include "wick/backend/cuda/nccl_communicator.h"
#endif
#ifdef WICK_MPI
#include "wick/backend/mpi/mpi_communicator.h"
#endif

namespace wick {

namespace {

#ifdef WICK_CUDA
constexpr bool kHasCuda = true;
bool cuda_answers() {
  return cuda::device_count() > 0;
}
std::unique_ptr<Backend> make_cuda(std::optional<int> device, const Place& place) {
  cuda::choose_device(device.value_or(place.local_rank % std::max(1, cuda::device_count())));
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
std::unique_ptr<Backend> make_cuda(std::optional<int>, const Place&) {
  fail("this build has no CUDA: build it with WICK_CUDA=ON");
}
std::vector<std::string> cuda_devices() {
  return {};
}
#endif

#ifdef WICK_MPI
std::unique_ptr<Communicator> make_mpi() {
  return std::make_unique<mpi::MpiCommunicator>();
}
#else
std::unique_ptr<Communicator> make_mpi() {
  fail(
      "several processes were started together, but this build has no MPI: build it with "
      "WICK_MPI=ON");
}
#endif

// Whether a launcher started this process as one of several. PMIX_RANK does not say of how many.
bool has_companions() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (const char* size = std::getenv(name)) {
      return std::strtol(size, nullptr, 10) > 1;
    }
  }
  return std::getenv("PMIX_RANK") != nullptr;
}

// The number behind "cuda:".
std::optional<int> gpu_number(std::string_view device) {
  constexpr std::string_view kPrefix = "cuda:";
  int number = 0;
  if (!device.starts_with(kPrefix)) {
    return std::nullopt;
  }
  const std::string_view digits = device.substr(kPrefix.size());
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, number);
  return error == std::errc() && stop == end && number >= 0 ? std::optional(number) : std::nullopt;
}

int threads_of(const BackendOptions& options) {
  if (options.threads > 0 || options.place.core_sharers == 1) {
    return options.threads;
  }
  return std::max(1, usable_cores() / options.place.core_sharers);
}

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
    return std::make_unique<cpu::CpuBackend>(cpu::CpuOptions{
        .threads = threads_of(options),
        .matmul_precision = options.matmul_precision.value_or(fastest_matmul_precision()),
        .copy_adopted = options.copy_adopted});
  }
  const std::optional<int> gpu = gpu_number(device);
  if (device == "cuda" || gpu) {
    return make_cuda(gpu, options.place);
  }
  fail("unknown device \"{}\": this build has cpu{} (and auto, the best there is)", device,
       kHasCuda ? ", cuda, cuda:0, cuda:1 and so on" : "");
}

MatmulPrecision fastest_matmul_precision() {
  return cpu::has_bf16_products() ? MatmulPrecision::medium : MatmulPrecision::highest;
}

std::unique_ptr<Communicator> join_processes() {
  if (!has_companions()) {
    return std::make_unique<Alone>();
  }
  return make_mpi();
}

std::unique_ptr<Communicator> connect_devices([[maybe_unused]] Communicator& processes,
                                              [[maybe_unused]] Backend& backend) {
#ifdef WICK_NCCL
  auto* gpu = dynamic_cast<cuda::CudaBackend*>(&backend);
  if (gpu != nullptr && processes.place().size > 1) {
    return cuda::NcclCommunicator::make(processes, *gpu);
  }
#endif
  return nullptr;
}

std::vector<DeviceDescription> describe_devices() {
  std::vector<DeviceDescription> devices = {{"cpu", cpu::describe_device()}};
  for (std::string& text : cuda_devices()) {
    devices.push_back({fmt::format("cuda:{}", devices.size() - 1), std::move(text)});
  }
  return devices;
}

}  // namespace wick
