// What the copy engine is told about tensors (see tensor_copy.cuh), made on the host.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace wick::cuda {

// A matrix of bf16, row-major; `stride` in elements, a multiple of 8; aligned to 16 bytes.
struct MapMatrix {
  const void* values;
  int64_t rows, columns, stride;
};

// Whether the driver can make maps.
bool has_tensor_maps();

// Boxes of `box_rows` x 64, in panels (see attention_groups.cuh); zeros outside.
CUtensorMap row_map(const MapMatrix& matrix, int box_rows);

}  // namespace wick::cuda
