// Which layers become one product, and what is made ready for it.
#include "wick/backend/cuda/lora_product.h"

#include <algorithm>

#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/lora_product.cuh"
#include "wick/backend/cuda/product_launch.cuh"
#include "wick/backend/cuda/tensor_map.h"

namespace wick::cuda {
namespace {

constexpr int kMostRanks = 64;

// What the product reads beside x and W.
struct Preparation {
  AdapterView adapter;
  int K, N, padded;  // R to a multiple of 8
  const void* bias;  // or null
  DType bias_type;
  int flags;
  __nv_bfloat16* a;     // [R, K]
  __nv_bfloat16* b;     // [N, padded]: scaling B
  float* bias_out;      // [N], where there is a bias
  unsigned* flags_out;  // zeros
};

constexpr int kPreparationThreads = 256;

__device__ __forceinline__ uint4 pack_eight(const float (&values)[8]) {
  return {pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
          pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])};
}

// A thread makes eight values of A or of scaling B, or one of the others.
__global__ void __launch_bounds__(kPreparationThreads)
    prepare_lora_product(const __grid_constant__ Preparation args) {
  // Nothing that the next kernel reads ahead of its own wait is then still being written.
  wait_for_previous();
  let_next_start();
  const AdapterView& adapter = args.adapter;
  int i = static_cast<int>(blockIdx.x) * kPreparationThreads + static_cast<int>(threadIdx.x);
  const int of_a = adapter.rank * (args.K / 8);
  const int of_b = args.N * (args.padded / 8);
  float values[8];
  if (i < of_a) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[j] = adapter.a[static_cast<int64_t>(i) * 8 + j];
    }
    reinterpret_cast<uint4*>(args.a)[i] = pack_eight(values);
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
    reinterpret_cast<uint4*>(args.b)[i] = pack_eight(values);
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
  static const int count =
      clusters_at_once(context, lora_product_kernel<kRanks>, ProductShared<kRanks>::kBytes);
  return count;
}

// Where the kernel's own memory lies in a scratch block; bytes.
struct ProductMemory {
  int64_t b, bias, flags, parts, bytes;
};

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

bool takes(const Context& context, const Tensor& x, const LinearTerm& term) {
  return term.adapters.size() == 1 && !term.row_adapter && term.adapters[0].a.rows() >= 1 &&
         term.adapters[0].a.rows() <= kMostRanks && rows_to_copy(x) && x.rows() > 0 &&
         rows_to_copy(term.weight) && rows_to_copy(term.y) && term.s.dtype() == DType::bf16 &&
         runs_groups(context, lora_product_kernel<16>) && clusters_at_once<16>(context) > 0 &&
         has_tensor_maps();
}

ProductShape shape_of(const Tensor& x, const LinearTerm& term) {
  return {x.rows(), term.weight.rows(), x.columns(), static_cast<int>(term.adapters[0].a.rows())};
}

// Fills what the product reads beside x and W, in `memory`.
void prepare(const Context& context, const ProductShape& shape, const LinearTerm& term,
             const ProductMemory& places, unsigned char* memory, ProductCall& call,
             ProductMaps& maps, int map_ranks) {
  Preparation args{};
  args.adapter = view_of(term.adapters[0]);
  args.K = static_cast<int>(shape.K);
  args.N = call.N;
  args.padded = static_cast<int>(ceil_div(shape.ranks, 8) * 8);
  args.flags = call.row_tiles * (kMacroRows / kGroupRows);
  args.a = reinterpret_cast<__nv_bfloat16*>(memory);
  args.b = reinterpret_cast<__nv_bfloat16*>(memory + places.b);
  args.flags_out = reinterpret_cast<unsigned*>(memory + places.flags);
  int64_t threads = shape.ranks * shape.K / 8 + shape.N * (args.padded / 8) + args.flags;
  if (term.bias) {
    args.bias = term.bias.address();
    args.bias_type = term.bias.dtype();
    args.bias_out = reinterpret_cast<float*>(memory + places.bias);
    threads += shape.N;
  }
  launch_early(context, true, prepare_lora_product,
               static_cast<unsigned>(ceil_div(threads, kPreparationThreads)), kPreparationThreads,
               0, args);
  check_launch("lora product's preparation");
  call.bias = args.bias_out;
  call.parts_there = args.flags_out;
  call.parts = reinterpret_cast<float*>(memory + places.parts);
  maps.a = row_map({args.a, shape.ranks, shape.K, shape.K}, map_ranks);
  maps.b = row_map({args.b, shape.N, args.padded, args.padded}, kProductColumns / kProductBlocks);
}

template <int kRanks>
void run_product(const Context& context, const Tensor& x, const LinearTerm& term) {
  const ProductShape shape = shape_of(x, term);
  const int at_once = clusters_at_once<kRanks>(context);
  ProductCall call = product_call(shape);
  call.most_parts =
      std::clamp(at_once / call.band, 1, std::min({kMostParts, call.column_tiles, call.steps}));
  const ProductMemory places = memory_of(shape, call, kRanks);
  const Scratch scratch(context, static_cast<size_t>(places.bytes));
  ProductMaps maps{};
  prepare(context, shape, term, places, scratch.as<unsigned char>(), call, maps, kRanks);
  call.y = static_cast<__nv_bfloat16*>(term.y.address());
  call.s = static_cast<__nv_bfloat16*>(term.s.address());
  maps.x = row_map({x.address(), shape.T, shape.K, shape.K}, kProductRows);
  maps.w =
      row_map({term.weight.address(), shape.N, shape.K, shape.K}, kProductColumns / kProductBlocks);
  launch_product(context, lora_product_kernel<kRanks>, at_once, ProductShared<kRanks>::kBytes,
                 ProductArgs{maps, call});
}

}  // namespace

bool lora_product(const Context& context, const Tensor& x, const LinearTerm& term) {
  if (!takes(context, x, term)) {
    return false;
  }
  const int64_t ranks = term.adapters[0].a.rows();
  if (ranks <= 16) {
    run_product<16>(context, x, term);
  } else if (ranks <= 32) {
    run_product<32>(context, x, term);
  } else {
    run_product<kMostRanks>(context, x, term);
  }
  return true;
}

bool lora_product_gains(const Context& context, const Tensor& x, const LinearTerm& term) {
  if (!takes(context, x, term)) {
    return false;
  }
  const ProductShape shape = shape_of(x, term);
  return product_time(shape, clusters_at_once<16>(context)) <
         dense_product_time(shape) + shrink_time(shape) + expand_time(shape);
}

}  // namespace wick::cuda
