// Which CUDA devices answer, and what they are. Safe to ask on a machine without a driver.
#pragma once

#include <string>
#include <vector>

namespace wick::cuda {

// 0 where there is no device, no driver, or one too old.
int device_count();

// Why `device_count` is 0.
std::string reason_for_no_device();

// The one that this thread uses from now on. Throws Error, with those that there are, where there
// is no such one.
void choose_device(int device);

// By number, one line a device: its name, memory, compute capability, and the versions of driver
// and runtime.
std::vector<std::string> describe_devices();

}  // namespace wick::cuda
