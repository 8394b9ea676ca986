// A block of a back end's memory, released by its destructor.
//
// `address` is a host address for a CPU buffer and a device address for a GPU buffer; only the back
// end that made it may follow it. The release function returns the block to its back end, or drops
// the owner of memory that was adopted.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

namespace wick {

class Buffer {
 public:
  Buffer(void* address, size_t bytes, std::function<void()> release)
      : address_(address), bytes_(bytes), release_(std::move(release)) {}
  ~Buffer() {
    if (release_) {
      release_();
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* address() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  void* address_;
  size_t bytes_;
  std::function<void()> release_;
};

}  // namespace wick
