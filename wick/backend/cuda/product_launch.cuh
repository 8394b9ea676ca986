// What the hosts of the products of lora_product.cuh and lora_product_dx.cu do alike: which
// tensors they take, how long they take, and their launch.
#pragma once

#include <algorithm>

#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_product_plan.cuh"

namespace wick::cuda {

// [T, K] by [K, N], and `ranks` more of K.
struct ProductShape {
  int64_t T, N, K;
  int ranks;
};

// Rows of bf16 that the copy engine takes; no count of them overflows an int.
inline bool rows_to_copy(const Tensor& wide) {
  constexpr int64_t kMost = int64_t{1} << 24;
  return wide.dtype() == DType::bf16 && wide.columns() > 0 && wide.columns() % 8 == 0 &&
         wide.rows() < kMost && wide.columns() < kMost && aligned_to(wide.address(), 16);
}

// Tiles in bands of 16 row tiles; without what belongs to the layer's tensors.
inline ProductCall product_call(const ProductShape& shape) {
  constexpr int kBand = 16;
  ProductCall call{};
  call.T = static_cast<int>(shape.T);
  call.N = static_cast<int>(shape.N);
  call.steps = static_cast<int>(ceil_div(shape.K, kProductDepth));
  call.ranks = shape.ranks;
  call.row_tiles = static_cast<int>(ceil_div(shape.T, kMacroRows));
  call.column_tiles = static_cast<int>(ceil_div(shape.N, kProductColumns));
  call.band = std::min(call.row_tiles, kBand);
  return call;
}

// Of the kernel, which it allows its shared memory.
template <class Args>
int clusters_at_once(const Context& context, void (*kernel)(Args), size_t shared_bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "a product's shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(context.multiprocessors / kProductBlocks * kProductBlocks);
  config.blockDim = kProductThreads;
  config.dynamicSmemBytes = shared_bytes;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kProductBlocks;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int count = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "a product's clusters");
  return count;
}

template <class Args>
void launch_product(const Context& context, void (*kernel)(Args), int at_once, size_t shared_bytes,
                    const Args& args) {
  const auto clusters =
      static_cast<unsigned>(std::min(at_once, args.call.row_tiles * args.call.column_tiles));
  launch_clusters(kernel, clusters * kProductBlocks, kProductThreads, kProductBlocks, shared_bytes,
                  context.stream, true, args);
  check_launch("a product with an adapter");
}

// Nanoseconds, as measured on an H200 at rank 16: of these kernels, and of the roads that they
// replace.
inline double product_time(const ProductShape& shape, int clusters) {
  constexpr double kStep = 780;     // all blocks at work
  constexpr double kTileSteps = 3;  // the adapter's, and leaving the registers
  constexpr double kStart = 5000;
  const int64_t tiles = ceil_div(shape.T, kMacroRows) * ceil_div(shape.N, kProductColumns);
  const double steps = static_cast<double>(ceil_div(shape.K, kProductDepth)) + kTileSteps;
  return kStart + static_cast<double>(ceil_div(tiles, clusters)) * steps * kStep;
}

inline double dense_product_time(const ProductShape& shape) {
  constexpr double kFlops = 670e3;  // of cuBLASLt
  return 2 * static_cast<double>(shape.T * shape.N) * static_cast<double>(shape.K) / kFlops;
}

// Reading the left factor for its ranks.
inline double shrink_time(const ProductShape& shape) {
  constexpr double kBytes = 1600;
  return 2 * static_cast<double>(shape.T * shape.K) / kBytes;
}

// Leaving the product in f32, and reading it to write its sum with the change.
inline double expand_time(const ProductShape& shape) {
  constexpr double kBytes = 700;
  return 2 * static_cast<double>(shape.T * shape.N) / kBytes;
}

// Reading and writing the result once more, in place of two short launches.
inline double other_pass_time(const ProductShape& shape) {
  constexpr double kBytes = 4000;
  constexpr double kLaunches = 5000;
  return 4 * static_cast<double>(shape.T * shape.N) / kBytes - kLaunches;
}

}  // namespace wick::cuda
