// AdamW in one pass over gradient, moments and parameters; and the sum of squares for clipping.
#include "wick/backend/cuda/adamw.h"

#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/rows.cuh"

namespace wick::cuda {

namespace {

constexpr int kAdamwThreads = 256;
constexpr int kSegments = 60;  // of one launch: they travel with its parameters

struct Arenas {
  const float* grad;
  float *p, *m, *v;
  bool aligned;  // to 16 bytes, all four
};

struct AdamwScalars {
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float epsilon;
  float max_gradient_norm;
  const float* square_sum;  // null: there is none, and no maximum
  const float* schedule;
};

// Each segment has blocks of its own, from first_block on; those of segment `count` begin the end.
struct SegmentTable {
  AdamwSegment segments[kSegments];
  unsigned first_block[kSegments + 1];
  int count;
};

struct AdamwStep {
  float gradient_scale;
  float rate;   // learning rate / (1 - beta1^t)
  float decay;  // 1 - learning rate * weight decay
  float correction2;
};

// False where the gradient is not finite: then the step is left out.
__device__ __forceinline__ bool make_step(const AdamwScalars& scalars, const AdamwSegment& segment,
                                          AdamwStep& step) {
  step.gradient_scale = 1.0F;
  if (scalars.square_sum != nullptr) {
    const float square_sum = *scalars.square_sum;
    if (!isfinite(square_sum)) {
      return false;
    }
    if (scalars.max_gradient_norm > 0) {
      const double norm = sqrt(double{square_sum});
      step.gradient_scale =
          static_cast<float>(fmin(1.0, double{scalars.max_gradient_norm} / (norm + 1e-6)));
    }
  }
  const float learning_rate = scalars.schedule[0] * segment.learning_rate_ratio;
  step.rate = learning_rate * scalars.schedule[1];
  step.decay = static_cast<float>(1.0 - double{learning_rate} * double{segment.weight_decay});
  step.correction2 = scalars.schedule[2];
  return true;
}

// Each rounding is said, so that an element has the same bits wherever it lies: left to itself, the
// compiler fuses one or the other product with the sum.
__device__ __forceinline__ void update(const AdamwScalars& scalars, const AdamwStep& step, float g,
                                       float& p, float& m, float& v) {
  g *= step.gradient_scale;
  m = fmaf(scalars.beta1, m, __fmul_rn(scalars.one_minus_beta1, g));
  v = fmaf(scalars.beta2, v, __fmul_rn(__fmul_rn(scalars.one_minus_beta2, g), g));
  const float root = sqrtf(__fmul_rn(v, step.correction2));
  const float change = __fmul_rn(step.rate, m) / __fadd_rn(root, scalars.epsilon);
  p = fmaf(step.decay, p, -change);
}

// A thread has the four elements [4 q, 4 q + 4) of the arenas, or those of them in the segment. The
// kernels behind it may read weights before they wait, so it lets none start early.
__global__ void __launch_bounds__(kAdamwThreads)
    adamw_kernel(const __grid_constant__ SegmentTable table, Arenas arenas, AdamwScalars scalars) {
  int at = 0;
  for (int step = 32; step > 0; step /= 2) {  // the last segment that begins at or before the block
    if (at + step < table.count && table.first_block[at + step] <= blockIdx.x) {
      at += step;
    }
  }
  const AdamwSegment& segment = table.segments[at];
  const int64_t end = segment.begin + segment.count;
  const int64_t quad =
      segment.begin / 4 + int64_t{blockIdx.x - table.first_block[at]} * kAdamwThreads + threadIdx.x;
  const int64_t first = 4 * quad;
  if (first >= end) {
    return;
  }
  wait_for_previous();
  const bool whole = arenas.aligned && first >= segment.begin && first + 4 <= end;
  AdamwStep step{};
  if (whole) {
    const float4 g = *reinterpret_cast<const float4*>(arenas.grad + first);
    float4 p = *reinterpret_cast<float4*>(arenas.p + first);
    float4 m = *reinterpret_cast<float4*>(arenas.m + first);
    float4 v = *reinterpret_cast<float4*>(arenas.v + first);
    if (!make_step(scalars, segment, step)) {
      return;
    }
    update(scalars, step, g.x, p.x, m.x, v.x);
    update(scalars, step, g.y, p.y, m.y, v.y);
    update(scalars, step, g.z, p.z, m.z, v.z);
    update(scalars, step, g.w, p.w, m.w, v.w);
    *reinterpret_cast<float4*>(arenas.p + first) = p;
    *reinterpret_cast<float4*>(arenas.m + first) = m;
    *reinterpret_cast<float4*>(arenas.v + first) = v;
    return;
  }
  if (!make_step(scalars, segment, step)) {
    return;
  }
  for (int64_t i = max(first, segment.begin); i < min(first + 4, end); ++i) {
    update(scalars, step, arenas.grad[i], arenas.p[i], arenas.m[i], arenas.v[i]);
  }
}

constexpr int kSquareThreads = 512;
constexpr int64_t kSquareBlocks = 256;

__device__ __forceinline__ double sum_block(double value, double* parts) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(~0U, value, offset);
  }
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
    value += parts[warp];
  }
  return value;
}

// Block b sums the squares of every gridDim-th run; a lone block writes the result itself.
template <int kWidth>
__global__ void __launch_bounds__(kSquareThreads)
    square_sums_kernel(const float* __restrict__ x, int64_t count, double* partial, float* out) {
  __shared__ double parts[kSquareThreads / 32];
  float sums[kWidth] = {};
  const int64_t stride = int64_t{gridDim.x} * kSquareThreads * kWidth;
  int64_t i = (int64_t{blockIdx.x} * kSquareThreads + threadIdx.x) * kWidth;
#pragma unroll 2
  for (; i + kWidth <= count; i += stride) {
    float values[kWidth];
    load_run(x + i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      sums[j] += values[j] * values[j];
    }
  }
  for (; i < count; ++i) {  // the last run, where it is not whole
    sums[0] += x[i] * x[i];
  }
  double sum = sums[0];
#pragma unroll
  for (int j = 1; j < kWidth; ++j) {
    sum += sums[j];
  }
  sum = sum_block(sum, parts);
  if (threadIdx.x == 0) {
    if (gridDim.x == 1) {
      *out = static_cast<float>(sum);
    } else {
      partial[blockIdx.x] = sum;
    }
  }
}

__global__ void __launch_bounds__(kSquareBlocks)
    join_square_sums_kernel(const double* __restrict__ partial, int count, float* out) {
  __shared__ double parts[kSquareBlocks / 32];
  const auto thread = static_cast<int>(threadIdx.x);
  const double sum = sum_block(thread < count ? partial[thread] : 0.0, parts);
  if (thread == 0) {
    *out = static_cast<float>(sum);
  }
}

void launch_adamw(const Context& context, const SegmentTable& table, const Arenas& arenas,
                  const AdamwScalars& scalars) {
  if (table.count == 0) {
    return;
  }
  launch_early(context, true, adamw_kernel, table.first_block[table.count], kAdamwThreads, 0, table,
               arenas, scalars);
  check_launch("adamw");
}

}  // namespace

void adamw(const Context& context, const Tensor& grad, const AdamwArgs& args, const Tensor& p,
           const Tensor& m, const Tensor& v) {
  Arenas arenas{grad.data<float>(), p.data<float>(), m.data<float>(), v.data<float>(), false};
  arenas.aligned = in_runs(0, {arenas.grad, arenas.p, arenas.m, arenas.v});
  const AdamwScalars scalars{args.beta1,
                             static_cast<float>(1.0 - double{args.beta1}),
                             args.beta2,
                             static_cast<float>(1.0 - double{args.beta2}),
                             args.epsilon,
                             args.max_gradient_norm,
                             args.square_sum ? args.square_sum.data<float>() : nullptr,
                             args.schedule.data<float>()};
  SegmentTable table{};
  for (const AdamwSegment& segment : args.segments) {
    if (segment.count == 0) {
      continue;
    }
    const int64_t quads = (segment.begin + segment.count + 3) / 4 - segment.begin / 4;
    table.segments[table.count] = segment;
    table.first_block[table.count + 1] =
        table.first_block[table.count] + static_cast<unsigned>(ceil_div(quads, kAdamwThreads));
    if (++table.count == kSegments) {
      launch_adamw(context, table, arenas, scalars);
      table = {};
    }
  }
  launch_adamw(context, table, arenas, scalars);
}

void sum_squares(const Context& context, const Tensor& x, const Tensor& out) {
  const int64_t count = x.elements();
  const float* values = x.data<float>();
  float* to = out.data<float>();
  const bool runs = in_runs(0, {values});
  constexpr int64_t kBlockElements = 8192;
  const int64_t blocks = std::clamp<int64_t>(count / kBlockElements, 1, kSquareBlocks);
  const Scratch scratch(context, blocks * sizeof(double));
  auto* partial = scratch.as<double>();
  const auto grid = static_cast<unsigned>(blocks);
  if (runs) {
    square_sums_kernel<8><<<grid, kSquareThreads, 0, context.stream>>>(values, count, partial, to);
  } else {
    square_sums_kernel<1><<<grid, kSquareThreads, 0, context.stream>>>(values, count, partial, to);
  }
  check_launch("square_sums");
  if (blocks > 1) {
    join_square_sums_kernel<<<1, kSquareBlocks, 0, context.stream>>>(partial,
                                                                     static_cast<int>(blocks), to);
    check_launch("join_square_sums");
  }
}

}  // namespace wick::cuda
