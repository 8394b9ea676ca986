// Which layers become one product, and what is made ready for it.
#include "wick/backend/cuda/lora_product.h"

#include <algorithm>

#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_product.cuh"
#include "wick/backend/cuda/tensor_map.h"

namespace wick::cuda {
namespace {

constexpr int kBand = 16;  // row tiles

struct Preparation {
  AdapterView adapter;
  int K, N, padded;  // R to a multiple of 8
  const void* bias;
  DType bias_type;
  int flags;
  bool vector;  // rows of A in aligned fours
  __nv_bfloat16* a;     // [R, K]
  __nv_bfloat16* b;     // [N, padded]
  float* bias_out;      // [N], where there is a bias
  unsigned* flags_out;  // zeros
};

constexpr int kPreparationThreads = 256;

// A thread makes eight values of A or of scaling B, or one of the others.
__global__ void __launch_bounds__(kPreparationThreads)
    prepare_lora_product(const __grid_constant__ Preparation args) {
  wait_for_previous();
  let_next_start();
  const AdapterView& adapter = args.adapter;
  int i = static_cast<int>(blockIdx.x) * kPreparationThreads + static_cast<int>(threadIdx.x);
  const int of_a = adapter.rank * (args.K / 8);
  const int of_b = args.N * (args.padded / 8);
  float values[8];
  if (i < of_a) {
    const float* from = adapter.a + static_cast<int64_t>(i) * 8;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[j] = from[j];
    }
    reinterpret_cast<uint4*>(args.a)[i] = {
        pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
        pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])};
    return;
  }
  i -= of_a;
  if (i < of_b) {
    const int n = i / (args.padded / 8);
    const int r = i % (args.padded / 8) * 8;
    const float* from = adapter.b + static_cast<int64_t>(n) * adapter.rank + r;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[j] = r + j < adapter.rank ? adapter.scaling * from[j] : 0.0F;
    }
    reinterpret_cast<uint4*>(args.b)[i] = {
        pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
        pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])};
    return;
  }
  i -= of_b;
  if (i < args.flags) {
    args.flags_out[i] = 0;
    return;
  }
  i -= args.flags;
  if (args.bias_out != nullptr && i < args.N) {
    args.bias_out[i] = load_as(args.bias, i, args.bias_type);
  }
}

template <int kRanks>
int clusters_at_once(const Context& context) {
  static const int most = [&] {
    check_cuda(cudaFuncSetAttribute(lora_product_kernel<kRanks>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    ProductShared<kRanks>::kBytes),
               "lora product");
    cudaLaunchConfig_t config{};
    config.gridDim = context.multiprocessors / kProductBlocks * kProductBlocks;
    config.blockDim = kProductThreads;
    config.dynamicSmemBytes = ProductShared<kRanks>::kBytes;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = kProductBlocks;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    check_cuda(cudaOccupancyMaxActiveClusters(&count, lora_product_kernel<kRanks>, &config),
               "lora product");
    return count;
  }();
  return most;
}

template <int kRanks>
void launch_product(const Context& context, int clusters, const ProductMaps& maps,
                    const ProductCall& call) {
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(clusters * kProductBlocks);
  config.blockDim = kProductThreads;
  config.dynamicSmemBytes = ProductShared<kRanks>::kBytes;
  config.stream = context.stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kProductBlocks;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  cudaLaunchKernelEx(&config, lora_product_kernel<kRanks>, maps, call);
  check_launch("lora product");
}

struct ProductShape {
  int64_t T, N, K;
  int ranks;
};

// Where the kernel's own memory lies in a scratch block; bytes.
struct ProductMemory {
  int64_t b, bias, flags, parts, bytes;
};

ProductCall call_of(const ProductShape& shape, int clusters) {
  ProductCall call{};
  call.T = static_cast<int>(shape.T);
  call.N = static_cast<int>(shape.N);
  call.steps = static_cast<int>(ceil_div(shape.K, kProductDepth));
  call.ranks = shape.ranks;
  call.row_tiles = static_cast<int>(ceil_div(shape.T, kMacroRows));
  call.column_tiles = static_cast<int>(ceil_div(shape.N, kProductColumns));
  call.band = std::min(call.row_tiles, kBand);
  call.most_parts =
      std::clamp(clusters / call.band, 1, std::min({kMostParts, call.column_tiles, call.steps}));
  return call;
}

ProductMemory memory_of(const ProductShape& shape, const ProductCall& call, int padded_ranks) {
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t rows64 = int64_t{call.row_tiles} * (kMacroRows / 64);
  ProductMemory memory{};
  memory.b = aligned(shape.ranks * shape.K * 2);
  memory.bias = memory.b + aligned(shape.N * ceil_div(shape.ranks, 8) * 16);
  memory.flags = memory.bias + aligned(shape.N * 4);
  memory.parts = memory.flags + aligned(rows64 * 4);
  memory.bytes = memory.parts + rows64 * call.most_parts * 64 * padded_ranks * 4;
  return memory;
}

template <int kRanks>
bool run_product(const Context& context, const Tensor& x, const LinearTerm& term) {
  const AdapterView adapter = view_of(term.adapters[0]);
  const ProductShape shape{x.rows(), term.weight.rows(), x.columns(), adapter.rank};
  const int at_once = clusters_at_once<kRanks>(context);
  ProductCall call = call_of(shape, at_once);
  const int clusters = std::min(at_once, call.row_tiles * call.column_tiles);
  const ProductMemory places = memory_of(shape, call, kRanks);
  const Scratch scratch(context, static_cast<size_t>(places.bytes));
  auto* memory = scratch.as<unsigned char>();

  Preparation args{};
  args.adapter = adapter;
  args.K = static_cast<int>(shape.K);
  args.N = call.N;
  args.padded = static_cast<int>(ceil_div(adapter.rank, 8) * 8);
  args.flags = call.row_tiles * (kMacroRows / 64);
  args.a = reinterpret_cast<__nv_bfloat16*>(memory);
  args.b = reinterpret_cast<__nv_bfloat16*>(memory + places.b);
  args.flags_out = reinterpret_cast<unsigned*>(memory + places.flags);
  int64_t threads = adapter.rank * shape.K / 8 + shape.N * (args.padded / 8) + args.flags;
  if (term.bias) {
    args.bias = term.bias.address();
    args.bias_type = term.bias.dtype();
    args.bias_out = reinterpret_cast<float*>(memory + places.bias);
    threads += shape.N;
  }
  launch_early(context, true, prepare_lora_product,
               static_cast<unsigned>(ceil_div(threads, kPreparationThreads)), kPreparationThreads, 0,
               args);
  check_launch("lora product's preparation");

  call.bias = args.bias_out;
  call.y = static_cast<__nv_bfloat16*>(term.y.address());
  call.s = static_cast<__nv_bfloat16*>(term.s.address());
  call.parts_there = args.flags_out;
  call.parts = reinterpret_cast<float*>(memory + places.parts);
  ProductMaps maps{};
  maps.x = row_map({x.address(), shape.T, shape.K, shape.K}, kProductRows);
  maps.w = row_map({term.weight.address(), shape.N, shape.K, shape.K}, kProductColumns / kProductBlocks);
  maps.a = row_map({args.a, adapter.rank, shape.K, shape.K}, kRanks);
  maps.b = row_map({args.b, shape.N, args.padded, args.padded}, kProductColumns / kProductBlocks);
  launch_product<kRanks>(context, clusters, maps, call);
  return true;
}

}  // namespace

bool lora_product(const Context& context, const Tensor& x, const LinearTerm& term) {
  const int ranks = static_cast<int>(term.adapters[0].a.rows());
  return ranks <= 16   ? run_product<16>(context, x, term)
         : ranks <= 32 ? run_product<32>(context, x, term)
                       : run_product<64>(context, x, term);
}

}  // namespace wick::cuda
