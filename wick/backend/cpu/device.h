// What the CPU back end finds on this machine.
#pragma once

#include <string>

namespace wick::cpu {

// One line: the threads that it takes by default, and the instruction set of its kernels.
std::string describe_device();

}  // namespace wick::cpu
