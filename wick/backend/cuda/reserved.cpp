// The driver's functions are asked for at run time, so that programs start where there is no
// driver.
#include "wick/backend/cuda/reserved.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

namespace wick::cuda {

namespace {

// Memory is mapped in pieces of at least this size: each costs some hundred microseconds.
constexpr size_t kPiece = size_t{32} << 20;

template <class Function>
bool find(const char* name, Function& function) {
  constexpr unsigned kVersion = 12000;  // the oldest driver API that has all of them as they are
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &address, kVersion, cudaEnableDefault, &found);
  function = reinterpret_cast<Function>(address);
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess && address != nullptr;
}

}  // namespace

struct ReservedRange::Driver {
  decltype(&cuDeviceGetAttribute) get_attribute = nullptr;
  decltype(&cuMemGetAllocationGranularity) get_granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_addresses = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;

  bool load() {
    return find("cuDeviceGetAttribute", get_attribute) &&
           find("cuMemGetAllocationGranularity", get_granularity) &&
           find("cuMemAddressReserve", reserve) && find("cuMemAddressFree", free_addresses) &&
           find("cuMemCreate", create) && find("cuMemRelease", release) && find("cuMemMap", map) &&
           find("cuMemUnmap", unmap) && find("cuMemSetAccess", set_access);
  }
};

namespace {

CUmemAllocationProp memory_of(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

size_t rounded_up(size_t bytes, size_t step) {
  return (bytes + step - 1) / step * step;
}

CUdeviceptr driver_address(const std::byte* address) {
  return reinterpret_cast<CUdeviceptr>(address);
}

}  // namespace

ReservedRange::ReservedRange(int device) : device_(device) {}

ReservedRange::~ReservedRange() {
  if (address_ != nullptr) {
    shrink_to(0);
    driver_->free_addresses(driver_address(address_), capacity_);
  }
}

bool ReservedRange::reserve(size_t capacity) {
  auto driver = std::make_unique<Driver>();
  int supported = 0;
  const CUmemAllocationProp properties = memory_of(device_);
  CUdeviceptr address = 0;
  if (!driver->load() ||
      driver->get_attribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                            device_) != CUDA_SUCCESS ||
      supported == 0 ||
      driver->get_granularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM) !=
          CUDA_SUCCESS) {
    return false;
  }
  granularity_ = rounded_up(kPiece, granularity_);
  const size_t bytes = rounded_up(capacity, granularity_);
  if (driver->reserve(&address, bytes, 0, 0, 0) != CUDA_SUCCESS) {
    return false;
  }
  driver_ = std::move(driver);
  address_ = std::bit_cast<std::byte*>(address);
  capacity_ = bytes;
  return true;
}

bool ReservedRange::grow_to(size_t bytes) {
  if (bytes <= mapped_) {
    return true;
  }
  const size_t piece = rounded_up(bytes - mapped_, granularity_);
  const CUmemAllocationProp properties = memory_of(device_);
  CUmemGenericAllocationHandle handle{};
  if (mapped_ + piece > capacity_ ||
      driver_->create(&handle, piece, &properties, 0) != CUDA_SUCCESS) {
    return false;
  }
  const CUdeviceptr end = driver_address(address_ + mapped_);
  const bool is_mapped = driver_->map(end, piece, 0, handle, 0) == CUDA_SUCCESS;
  driver_->release(handle);  // the mapping keeps the memory
  if (!is_mapped) {
    return false;
  }
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  if (driver_->set_access(end, piece, &access, 1) != CUDA_SUCCESS) {
    driver_->unmap(end, piece);
    return false;
  }
  pieces_.push_back(piece);
  mapped_ += piece;
  return true;
}

void ReservedRange::shrink_to(size_t bytes) {
  while (!pieces_.empty() && mapped_ - pieces_.back() >= bytes) {
    mapped_ -= pieces_.back();
    driver_->unmap(driver_address(address_ + mapped_), pieces_.back());
    pieces_.pop_back();
  }
}

}  // namespace wick::cuda
