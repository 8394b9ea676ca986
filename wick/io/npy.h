// NumPy's .npy files, version 1.0, of f32 in row-major order.
//
// Layout: "\x93NUMPY", version 1 0, u16 header length, a Python dict padded with spaces so that the
// data begin at a multiple of 64. Source: numpy.lib.format.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "wick/core/shape.h"

namespace wick {

// Written whole or not at all. Throws Error where shape and number of values differ.
void write_npy(const std::filesystem::path& path, const Shape& shape,
               std::span<const float> values);

struct NpyArray {
  Shape shape;
  std::vector<float> values;
};

// Throws Error naming the file where it is anything but what `write_npy` writes.
NpyArray read_npy(const std::filesystem::path& path);

}  // namespace wick
