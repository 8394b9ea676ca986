// Attention backward: the statistics of rows, the choice of kernels, and the sum of their parts;
// without atomics, so the same gradients, bit for bit, each time.
//
// FlashAttention-2 (Dao, 2023) rebuilds the probabilities p from q, k and the softmax's
// denominator. With dp = d_o v^T and delta = rowsum(o d_o): ds = p (dp - delta), dv = p^T d_o, dk =
// scale ds^T q, dq = scale ds k. One kernel owns tiles of keys and sums dk and dv over the rows
// that see them, a second owns tiles of queries and sums dq: seven products a pair where atomic
// sums would need five. Bound by the tensor cores: 14 D flops a visible pair and head.
//
// Memory: 8 bytes a row and head, 8 a row; and, where tiles of keys are too few to fill the device,
// `parts` f32 copies of dk and dv, one for each share of a group's heads, added up in order.
#include <algorithm>

#include "wick/backend/cuda/attention_backward.cuh"
#include "wick/backend/cuda/elements.cuh"

namespace wick::cuda {

namespace {

// to = sum of the parts in their order; `count` is a multiple of 8.
__global__ void __launch_bounds__(256)
    add_parts(const float* dk_parts, const float* dv_parts, int parts, int64_t count,
              __nv_bfloat16* dk, __nv_bfloat16* dv) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8;
  if (at >= count) {
    return;
  }
  const float* from = (blockIdx.y == 0 ? dk_parts : dv_parts) + at;
  float sum[8];
  load8(from, sum);
  for (int part = 1; part < parts; ++part) {
    float more[8];
    load8(from + part * count, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum[i] += more[i];
    }
  }
  store8(sum, (blockIdx.y == 0 ? dk : dv) + at);
}

// Shares of a group's heads: as many as make so many blocks of the tiles of keys, of which a
// multiprocessor runs three, or two of large heads. They do not depend on the device, so that
// results do not.
int parts_of(const AttentionCall& call) {
  const int heads = call.H / call.G;
  const int64_t blocks = static_cast<int64_t>(divide_up(call.Tk, 64)) * call.G;
  const int wanted = divide_up(call.D <= 64 ? 2048 : 512, std::max<int64_t>(blocks, 1));
  const int heads_of_part = divide_up(heads, std::min(heads, wanted));
  return divide_up(heads, heads_of_part);
}

void backward_tiles(const Context& context, const AttentionResults& forward,
                    const AttentionCall& call, const RowStatistics& statistics, const Tensor& dq,
                    const Tensor& dk, const Tensor& dv) {
  const int parts = parts_of(call);
  const size_t part_bytes = dk.elements() * sizeof(float);
  const Scratch scratch(context, parts > 1 ? 2 * parts * part_bytes : 0);
  const BackwardTensors tensors{forward.q.data<__nv_bfloat16>(),
                                forward.k.data<__nv_bfloat16>(),
                                forward.v.data<__nv_bfloat16>(),
                                forward.d_o.data<__nv_bfloat16>(),
                                statistics,
                                dq.data<__nv_bfloat16>(),
                                dk.data<__nv_bfloat16>(),
                                dv.data<__nv_bfloat16>(),
                                scratch.as<float>(),
                                scratch.as<float>() + (parts > 1 ? parts * dk.elements() : 0),
                                parts};
  if (!backward_groups(context, call, tensors)) {
    backward_warps(context, call, tensors);
  }
  if (parts > 1 && call.Tk > 0) {
    const dim3 grid(divide_up(dk.elements(), 8 * 256), 2);
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
  const bool chunked = in_chunks(forward.q) && in_chunks(forward.k) && in_chunks(forward.v) &&
                       in_chunks(forward.d_o) && in_chunks(dq) && in_chunks(dk) && in_chunks(dv);
  if (chunked && call.D <= 128) {
    backward_tiles(context, forward, call, statistics, dq, dk, dv);
  } else {
    attention_backward_plain(context, forward, call, statistics, dq, dk, dv);
  }
}

}  // namespace wick::cuda
