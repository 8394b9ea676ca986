// What the CPU back end finds on this machine.
#pragma once

#include <string>

namespace wick::cpu {

// One line: the threads that it takes by default, and the instruction set of its kernels.
std::string describe_device();

// Whether this CPU multiplies pairs of bf16 numbers (AVX512-BF16, AMX) and oneDNN uses it.
bool has_bf16_products();

}  // namespace wick::cpu
