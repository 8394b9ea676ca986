// A range of device addresses that is filled with memory from its beginning, as far as it is
// needed.
//
// Blocks of different sizes can follow each other in it without the gaps that separate allocations
// would leave. Source: CUDA driver API, virtual memory management.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace wick::cuda {

class ReservedRange {
 public:
  explicit ReservedRange(int device);
  ~ReservedRange();
  ReservedRange(const ReservedRange&) = delete;
  ReservedRange& operator=(const ReservedRange&) = delete;

  // Reserves addresses, once. False where the device cannot map memory so.
  bool reserve(size_t capacity);
  size_t capacity() const { return capacity_; }
  std::byte* address() const { return address_; }

  size_t mapped() const { return mapped_; }
  // Makes the first `bytes` usable; false where the device has no memory left.
  bool grow_to(size_t bytes);
  // Gives back what lies wholly behind the first `bytes`, which no work may use any more; the
  // addresses stay reserved.
  void shrink_to(size_t bytes);

 private:
  struct Driver;

  int device_;
  std::unique_ptr<Driver> driver_;  // none before `reserve`
  std::byte* address_ = nullptr;
  size_t capacity_ = 0;
  size_t granularity_ = 0;
  size_t mapped_ = 0;
  std::vector<size_t> pieces_;  // bytes of each mapping, in order
};

}  // namespace wick::cuda
