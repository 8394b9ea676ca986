// Maps by the driver's own function, which the runtime finds: nothing is linked for it.
#include "wick/backend/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <array>
#include <span>

#include "wick/backend/cuda/context.h"

namespace wick::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

Encode find_encode() {
  constexpr unsigned kCuda12 = 12000;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              kCuda12, cudaEnableDefault, &result);
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(found);
}

Encode encode() {
  static const Encode found = find_encode();
  return found;
}

constexpr int64_t kBytes = 2;  // of a value
constexpr cuuint32_t kBoxColumns = 64;

template <size_t kRank>
CUtensorMap make_map(const MapMatrix& matrix, const std::array<cuuint64_t, kRank>& sizes,
                     const std::array<int64_t, kRank - 1>& rows_apart,
                     const std::array<cuuint32_t, kRank>& box) {
  std::array<cuuint64_t, kRank - 1> strides{};
  for (size_t i = 0; i < strides.size(); ++i) {
    strides[i] = static_cast<cuuint64_t>(rows_apart[i] * matrix.stride * kBytes);
  }
  std::array<cuuint32_t, kRank> each{};
  each.fill(1);
  CUtensorMap map{};
  const CUresult status =
      encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(matrix.values),
               sizes.data(), strides.data(), box.data(), each.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check_cuda(status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "map of a tensor");
  return map;
}

}  // namespace

bool has_tensor_maps() {
  return encode() != nullptr;
}

CUtensorMap row_map(const MapMatrix& matrix, int box_rows) {
  return make_map<2>(
      matrix, {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)}, {1},
      {kBoxColumns, static_cast<cuuint32_t>(box_rows)});
}

}  // namespace wick::cuda
