// Attention backward: the statistics of rows, the choice of kernels, and the sum of their parts;
// without atomics, so the same gradients, bit for bit, each time.
//
// FlashAttention-2 (Dao, 2023) rebuilds the probabilities p from q, k and the softmax's
// denominator. With dp = d_o v^T and delta = rowsum(o d_o): ds = p (dp - delta), dv = p^T d_o, dk =
// scale ds^T q, dq = scale ds k. One kernel owns tiles of keys and sums dk and dv over the rows
// that see them, a second owns tiles of queries and sums dq: seven products a pair where atomic
// sums would need five. Bound by the tensor cores: 14 D flops a visible pair and head, three times
// as many of f32.
//
// Memory: 8 bytes a row and head, 8 a row; and, where tiles of keys are too few to fill the device,
// `parts` f32 copies of dk and dv, one for each share of a group's heads, added up in order.
#include <algorithm>
#include <type_traits>

#include "wick/backend/cuda/attention_backward.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements

// to = sum of the parts in their order; `count` is of whole chunks of T.
template <class T>
__global__ void __launch_bounds__(256) add_parts(const float* dk_parts, const float* dv_parts,
                                                 int parts, int64_t count, T* dk, T* dv) {
  constexpr int kFours = kChunk<T> / 4;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * kChunk<T>;
  if (at >= count) {
    return;
  }
  const float* from = (blockIdx.y == 0 ? dk_parts : dv_parts) + at;
  float4 sum[kFours] = {};
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const float4 more = reinterpret_cast<const float4*>(from + part * count)[i];
      sum[i].x += more.x, sum[i].y += more.y, sum[i].z += more.z, sum[i].w += more.w;
    }
  }
  T* to = (blockIdx.y == 0 ? dk : dv) + at;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      reinterpret_cast<float4*>(to)[i] = sum[i];
    } else {
      reinterpret_cast<uint2*>(to)[i] = {pack_bf16(sum[i].x, sum[i].y),
                                         pack_bf16(sum[i].z, sum[i].w)};
    }
  }
}

// Shares of a group's heads: as many as make so many blocks of the tiles of keys, of which a
// multiprocessor runs three, or two of large heads; blocks of f32 take longer, and few of unlike
// length end apart. They do not depend on the device, so that results do not.
template <class T>
int parts_of(const AttentionCall& call) {
  const int heads = call.H / call.G;
  const int64_t blocks = static_cast<int64_t>(divide_up(call.Tk, 64)) * call.G;
  const int wanted = divide_up(call.D <= 64 || std::is_same_v<T, float> ? 2048 : 512,
                               std::max<int64_t>(blocks, 1));
  const int heads_of_part = divide_up(heads, std::min(heads, wanted));
  return divide_up(heads, heads_of_part);
}

template <class T>
void backward_tiles(const Context& context, const AttentionResults& forward,
                    const AttentionCall& call, const RowStatistics& statistics, const Tensor& dq,
                    const Tensor& dk, const Tensor& dv) {
  const int parts = parts_of<T>(call);
  const size_t part_bytes = dk.elements() * sizeof(float);
  const Scratch scratch(context, parts > 1 ? 2 * parts * part_bytes : 0);
  const BackwardTensors<T> tensors{forward.q.data<T>(),
                                   forward.k.data<T>(),
                                   forward.v.data<T>(),
                                   forward.d_o.data<T>(),
                                   statistics,
                                   dq.data<T>(),
                                   dk.data<T>(),
                                   dv.data<T>(),
                                   scratch.as<float>(),
                                   scratch.as<float>() + (parts > 1 ? parts * dk.elements() : 0),
                                   parts};
  if constexpr (std::is_same_v<T, float>) {
    backward_warps(context, call, tensors);
  } else if (!backward_groups(context, call, tensors)) {
    backward_warps(context, call, tensors);
  }
  if (parts > 1 && call.Tk > 0) {
    const dim3 grid(divide_up(dk.elements(), kChunk<T> * 256), 2);
    add_parts<<<grid, 256, 0, context.stream>>>(tensors.dk_parts, tensors.dv_parts, parts,
                                                dk.elements(), tensors.dk, tensors.dv);
    check_launch("attention_backward of parts");
  }
}

}  // namespace

void attention_backward(const Context& context, const AttentionResults& forward,
                        const Tensor& spans, const AttentionArgs& args, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv) {
  const AttentionCall call = attention_call(forward.q, forward.k, spans, args);
  check_head_size(call.D);
  const auto rows = static_cast<size_t>(call.Tq);
  const Scratch scratch(context, rows * (call.H * sizeof(float2) + sizeof(VisibleKeys)));
  RowStatistics statistics{};
  statistics.of_heads = scratch.as<float2>();
  statistics.keys = reinterpret_cast<VisibleKeys*>(statistics.of_heads + rows * call.H);
  find_statistics(context, forward, call, statistics);
  const DType type = forward.q.dtype();
  const auto chunked = [type](const auto&... tensors) { return (in_chunks(tensors, type) && ...); };
  if (call.D > 128 || !chunked(forward.q, forward.k, forward.v, forward.d_o, dq, dk, dv)) {
    attention_backward_plain(context, forward, call, statistics, dq, dk, dv);
  } else if (type == DType::f32) {
    backward_tiles<float>(context, forward, call, statistics, dq, dk, dv);
  } else {
    backward_tiles<__nv_bfloat16>(context, forward, call, statistics, dq, dk, dv);
  }
}

}  // namespace wick::cuda
