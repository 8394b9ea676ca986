// What the kernels of this build were compiled for.
#pragma once

namespace wick::cuda {

// The virtual architecture of the code that the current device runs, 80 for compute_80: a build for
// older devices runs on newer ones, and holds nothing there of what came after it. 0 where no code
// of the build runs on the device.
int compiled_capability();

}  // namespace wick::cuda
