// The CUDA back end's memory: blocks of the device, kept for reuse when they are given back.
//
// All work goes to one stream, in order, so a block may serve new work while the old work that used
// it has yet to run. Safe from several threads.
//
// Recorded work (see Recorder) keeps the addresses of what it allocated, so inside a RecordedScope
// blocks come from a range of their own that nothing else uses. All recorded work shares that
// range: it runs one after the other, and has given everything back at its end. Work that asks for
// the same sizes again gets the same addresses again, whatever ran between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/ranges.h"
#include "wick/backend/cuda/reserved.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

enum class ScopeMode : uint8_t {
  running,   // the work runs, and more memory may be mapped for it
  capturing  // the work is captured: no memory may be asked of the device
};

class DeviceMemory {
 public:
  DeviceMemory();  // of the current device
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // At least `bytes` of uninitialised memory, aligned to 256 bytes. Throws Error when there is not
  // enough.
  Block take(size_t bytes);
  void give_back(const Block& block);

  MemoryUse use() const;  // in the sizes of the blocks
  void reset_peak();

  // For Recorder. False where the device cannot map memory as scopes need it.
  bool can_record();
  void begin_scope(ScopeMode mode);
  // The work of the scope has succeeded and may be replayed: the range stays mapped as far as it
  // was used. Without this the memory may be given back when others need it.
  void keep_scope();
  void end_scope();
  // The most bytes that were taken at one time in the last scope.
  size_t scope_peak_bytes() const { return scope_peak_bytes_; }
  // A replay uses as much memory as the work did when it was recorded.
  void note_replay(size_t scope_peak_bytes);
  // Nothing recorded is left: its memory may serve others, all but a little at once. The device
  // must be idle.
  void forget_recorded();

 private:
  Block take_recorded(size_t bytes);
  bool make_usable(size_t recorded_bytes);
  void* from_device(size_t bytes);
  // What no tensor and no recorded work needs goes back to the device.
  void release_unused();
  [[noreturn]] void fail_for(size_t bytes) const;

  size_t device_bytes_ = 0;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;  // addresses by block size
  MemoryUse use_;

  ReservedRange reserved_;
  std::unique_ptr<Ranges> recorded_;  // of reserved_; none before the first recorder
  bool in_scope_ = false;
  ScopeMode mode_ = ScopeMode::running;
  size_t scope_bytes_ = 0;
  size_t scope_peak_bytes_ = 0;
  size_t scope_end_ = 0;  // how far of the range it uses
  size_t kept_end_ = 0;   // how far of the range work that may be replayed uses
};

// While this lives, blocks are of recorded work. Scopes do not nest.
class RecordedScope {
 public:
  RecordedScope(DeviceMemory& memory, ScopeMode mode) : memory_(memory) {
    memory_.begin_scope(mode);
  }
  ~RecordedScope() { memory_.end_scope(); }
  RecordedScope(const RecordedScope&) = delete;
  RecordedScope& operator=(const RecordedScope&) = delete;

 private:
  DeviceMemory& memory_;
};

}  // namespace wick::cuda
