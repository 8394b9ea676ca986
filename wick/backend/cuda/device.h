// Which CUDA devices answer, and what they are. Safe to ask on a machine without a driver.
#pragma once

#include <string>
#include <vector>

namespace wick::cuda {

// 0 where there is no device, no driver, or one too old.
int device_count();

// Why `device_count` is 0.
std::string reason_for_no_device();

// The one that this thread uses from now on, for the process `local_rank` of this machine: they
// take them in turn.
void choose_device(int local_rank);

// One line a device: its name, memory, compute capability, and the versions of driver and runtime.
std::vector<std::string> describe_devices();

}  // namespace wick::cuda
