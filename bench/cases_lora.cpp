// The LoRA micro-cases: delta, frozen linear with delta, gradients, whole step, AdamW, and the
// model's products.
#include <fmt/core.h>

#include <array>

#include <algorithm>
#include <cmath>

#include "bench/builders.h"
#include "bench/inputs.h"
#include "tests/reference/lora.h"
#include "tests/reference/loss.h"

namespace wick::bench {

std::string dtype_suffix(DType dtype) {
  return dtype == DType::f32 ? "" : fmt::format(",dtype={}", name_of(dtype));
}

double error_limit(DType dtype) {
  return dtype == DType::f32 ? kErrorLimit : kBf16ErrorLimit;
}

namespace {

constexpr float kScaling = 2.0F;

// Rows x, one or more adapters of a square layer, and their reference copies in double precision.
struct LoraSetup {
  LoraSetup(Backend& be, const LoraSizes& sizes)
      : backend(be), T(sizes.T), d(sizes.d), r(sizes.r), adapters(sizes.adapters) {
    const DType type = be.activation_type(sizes.dtype);
    x = normal_tensor(be, {T, d}, 1.0F, 1, type);
    s = be.allocate({T, r}, type);
    y = be.allocate({T, d}, type);
    for (int64_t g = 0; g < adapters; ++g) {
      factors.push_back({normal_tensor(be, {r, d}, 0.05F, 10 + 2 * static_cast<uint64_t>(g)),
                         normal_tensor(be, {d, r}, 0.05F, 11 + 2 * static_cast<uint64_t>(g)),
                         kScaling});
    }
    if (adapters > 1) {
      for (int64_t t = 0; t < T; ++t) {
        which.push_back(static_cast<int32_t>(t % adapters));
      }
      row_adapter = tensor_of(be, which);
    }
  }

  // Of the result, a few rows are proof enough where there are many.
  int64_t proved_rows() const { return T > 256 ? 4 : T; }

  // x W^T in double precision, of the rows that are proved.
  std::vector<double> expected_base(const Tensor& w) const {
    const int64_t rows = proved_rows();
    const std::vector<double> wide_x = widened(values_of(backend, x.slice(0, rows)));
    const std::vector<double> wide_w = widened(values_of(backend, w));
    std::vector<double> base(static_cast<size_t>(rows * d));
    reference::matmul<double>(wide_x.data(), wide_w.data(), nullptr, MatmulForm::nt, false,
                              {rows, d, d}, base.data());
    return base;
  }

  // base + delta in double precision; `base` is empty for the delta alone.
  std::vector<double> expected(std::vector<double> base) const {
    const int64_t proved = proved_rows();
    const std::vector<double> wide_x = widened(values_of(backend, x.slice(0, proved)));
    std::vector<std::vector<double>> a, b;
    std::vector<reference::Adapter<double>> wide;
    for (const LoraFactors& factor : factors) {
      a.push_back(widened(values_of(backend, factor.a)));
      b.push_back(widened(values_of(backend, factor.b)));
      wide.push_back({a.back().data(), b.back().data(), r, kScaling});
    }
    std::vector<double> wide_s(static_cast<size_t>(proved * r));
    base.resize(static_cast<size_t>(proved * d));
    const int32_t* rows = which.empty() ? nullptr : which.data();
    reference::lora_forward(wide_x.data(), wide.data(), rows, {proved, d, d, r}, wide_s.data(),
                            base.data());
    return base;
  }

  double error(const std::vector<double>& wanted) const {
    return relative_error(values_of(backend, y.slice(0, proved_rows())), wanted);
  }

  Backend& backend;
  int64_t T, d, r, adapters;
  Tensor x, s, y, row_adapter;
  std::vector<int32_t> which;  // the same in host memory; empty: all rows use adapter 0
  std::vector<LoraFactors> factors;
};

double delta_flops(int64_t T, int64_t d, int64_t r) {
  return 4.0 * static_cast<double>(T * d * r);
}

// Rows in and out in their type, factors in f32.
double delta_bytes(const LoraSizes& sizes) {
  return static_cast<double>(size_of(sizes.dtype)) * static_cast<double>(2 * sizes.T * sizes.d) +
         4.0 * static_cast<double>(2 * sizes.adapters * sizes.d * sizes.r);
}

// ",n=32,dtype=bf16": what is not as in most cases.
std::string suffix_of(const LoraSizes& sizes) {
  return (sizes.adapters > 1 ? fmt::format(",n={}", sizes.adapters) : "") +
         dtype_suffix(sizes.dtype);
}

}  // namespace

Case delta_case(const LoraSizes& sizes) {
  const auto& [T, d, r, adapters, dtype] = sizes;
  Case c{.suite = "inference",
         .name = fmt::format("{}:T={},d={},r={}{}", adapters > 1 ? "lora_grouped" : "lora_delta", T,
                             d, r, suffix_of(sizes)),
         .flops = delta_flops(T, d, r),
         .bytes = delta_bytes(sizes),
         .error_limit = error_limit(dtype)};
  c.prepare = [sizes](Backend& be) {
    auto setup = std::make_shared<LoraSetup>(be, sizes);
    const auto work = [setup, &be] {
      be.lora_delta(setup->x, setup->factors, setup->row_adapter, setup->s, setup->y);
    };
    return awaited(be, work, [setup] { return setup->error(setup->expected({})); });
  };
  return c;
}

Case linear_case(const LoraSizes& sizes) {
  const auto& [T, d, r, adapters, dtype] = sizes;
  Case c{.suite = "inference",
         .name = fmt::format("lora_linear:T={},d={},r={}{}", T, d, r, suffix_of(sizes)),
         .flops = 2.0 * static_cast<double>(T * d * d) + delta_flops(T, d, r),
         .bytes =
             delta_bytes(sizes) + static_cast<double>(size_of(dtype)) * static_cast<double>(d * d),
         .error_limit = error_limit(dtype)};
  c.prepare = [sizes](Backend& be) {
    auto setup = std::make_shared<LoraSetup>(be, sizes);
    const Tensor w = be.allocate({sizes.d, sizes.d}, sizes.dtype);
    NormalPool(be, 0.02F, sizes.dtype).fill(3, w);
    const LinearTerm term{w, {}, setup->factors, setup->row_adapter, setup->s, setup->y};
    const auto work = [setup, term, &be] { be.linears(setup->x, {&term, 1}); };
    return awaited(be, work,
                   [setup, w] { return setup->error(setup->expected(setup->expected_base(w))); });
  };
  return c;
}

namespace {

// The delta's forward pass, cross-entropy over its d outputs, and the gradients of A and B; with
// `optimizer`, AdamW over both as one arena.
struct StepSetup : LoraSetup {
  StepSetup(Backend& be, const StepSizes& sizes)
      : LoraSetup(be, {sizes.B * sizes.T, sizes.d, sizes.r}), scalars(be) {
    gradient_scale = tensor_of(be, std::array{1.0F / static_cast<float>(T)}, {1});
    arena = be.allocate({2 * d * r}, DType::f32);
    grads = be.allocate({2 * d * r}, DType::f32);
    m = be.allocate({2 * d * r}, DType::f32);
    v = be.allocate({2 * d * r}, DType::f32);
    const Tensor a = arena.part(0, {r, d});
    const Tensor b = arena.part(d * r, {d, r});
    be.copy(factors[0].a, a);
    be.copy(factors[0].b, b);
    factors[0].a = a;
    factors[0].b = b;
    be.fill(0.0F, m);
    be.fill(0.0F, v);
    for (int64_t t = 0; t < T; ++t) {
      target_ids.push_back(static_cast<int32_t>((7 * t + 3) % d));
    }
    targets = tensor_of(be, target_ids);
    losses = be.allocate({T}, DType::f32);
    ds = be.allocate({T, r}, DType::f32);
  }

  void run(bool optimizer) {
    Backend& be = backend;
    be.lora_delta(x, factors, {}, s, y);
    be.cross_entropy(targets, {gradient_scale}, y, losses);
    be.fill(0.0F, grads);
    be.lora_backward(x, s, y, factors[0], ds, grads.part(0, {r, d}), grads.part(d * r, {d, r}), {});
    if (optimizer) {
      const AdamwSegment segment{0, arena.elements(), 1.0F, 0.01F};
      be.adamw(grads, scalars.args({&segment, 1}), arena, m, v);
    }
  }

  std::vector<double> expected_gradients() {
    std::vector<double> logits = expected({});
    std::vector<double> wide_losses(static_cast<size_t>(T));
    const float scale = 1.0F / static_cast<float>(T);
    reference::cross_entropy(target_ids.data(), &scale, T, d, logits.data(), wide_losses.data());
    const std::vector<double> wide_x = widened(values_of(backend, x));
    const std::vector<double> a = widened(values_of(backend, factors[0].a));
    const std::vector<double> b = widened(values_of(backend, factors[0].b));
    const reference::Adapter<double> adapter{a.data(), b.data(), r, kScaling};
    std::vector<double> wide_s(static_cast<size_t>(T * r));
    std::vector<double> ignored(static_cast<size_t>(T * d));
    reference::lora_forward(wide_x.data(), &adapter, nullptr, {T, d, d, r}, wide_s.data(),
                            ignored.data());
    std::vector<double> wide_ds(static_cast<size_t>(T * r));
    std::vector<double> gradients(static_cast<size_t>(2 * d * r));
    reference::lora_backward<double>(wide_x.data(), wide_s.data(), logits.data(), adapter,
                                     {T, d, d, r}, wide_ds.data(), gradients.data(),
                                     gradients.data() + d * r, nullptr);
    return gradients;
  }

  Tensor arena, grads, m, v, targets, losses, ds, gradient_scale;
  AdamwScalars scalars;
  std::vector<int32_t> target_ids;
};

}  // namespace

Case step_case(const StepSizes& sizes, bool optimizer) {
  const auto& [B, T, d, r] = sizes;
  const int64_t rows = B * T;
  Case c{.suite = "training",
         .name = fmt::format("{}:B={},T={},d={},r={}", optimizer ? "lora_step" : "lora_gradients",
                             B, T, d, r),
         // dA and dB and dS cost what the forward pass costs, half as much again; the rest is a few
         // flops a value.
         .flops = 2.5 * delta_flops(rows, d, r),
         .bytes = delta_bytes({rows, d, r}) * 2.0};
  c.prepare = [sizes, optimizer](Backend& be) {
    auto setup = std::make_shared<StepSetup>(be, sizes);
    PreparedCase prepared = awaited(be, [setup, optimizer] { setup->run(optimizer); }, {});
    // Before the optimiser changes what the gradients are of.
    prepared.error = [setup, &be] {
      setup->run(false);
      return relative_error(values_of(be, setup->grads), setup->expected_gradients());
    };
    return prepared;
  };
  return c;
}

Case adamw_case(int64_t n) {
  Case c{.suite = "training",
         .name = fmt::format("adamw:n={}", n),
         .flops = 14.0 * static_cast<double>(n),
         .bytes = 4.0 * 7.0 * static_cast<double>(n)};
  c.prepare = [n](Backend& be) {
    const Tensor p = normal_tensor(be, {n}, 1.0F, 1);
    const Tensor g = normal_tensor(be, {n}, 1.0F, 2);
    const Tensor m = normal_tensor(be, {n}, 0.1F, 3);
    const Tensor v = be.allocate({n}, DType::f32);
    be.fill(0.5F, v);
    const AdamwScalars scalars(be);
    const AdamwSegment segment{0, n, 1.0F, 0.01F};
    const auto work = [=, &be] { be.adamw(g, scalars.args({&segment, 1}), p, m, v); };
    PreparedCase prepared = awaited(be, work, {});
    prepared.error = [=, call = prepared.call, &be] {
      std::vector<double> wide_p = widened(values_of(be, p));
      std::vector<double> wide_m = widened(values_of(be, m));
      std::vector<double> wide_v = widened(values_of(be, v));
      const std::vector<double> wide_g = widened(values_of(be, g));
      call();
      reference::adamw(wide_g.data(), scalars.args({&segment, 1}), {.learning_rate = 1e-4},
                       wide_p.data(), wide_m.data(), wide_v.data());
      return relative_error(values_of(be, p), wide_p);
    };
    return prepared;
  };
  return c;
}

// A product of the Qwen2.5-0.5B shape with the base in bf16; the peers have it in f32.
Case gemm_case(const GemmSizes& sizes) {
  const int64_t T = sizes.T;
  const int64_t N = sizes.N;
  const int64_t K = sizes.K;
  const DType activations = sizes.activations;
  Case c{.suite = "training",
         .name = fmt::format("gemm:T={},N={},K={}{}", T, N, K, dtype_suffix(activations)),
         .flops = 2.0 * static_cast<double>(T * N * K),
         .bytes = static_cast<double>(size_of(activations)) * static_cast<double>(T * (N + K)) +
                  2.0 * static_cast<double>(N * K),
         .error_limit = error_limit(activations)};
  c.prepare = [=](Backend& be) {
    const DType type = be.activation_type(activations);
    const Tensor x = be.allocate({T, K}, type);
    const Tensor w = be.allocate({N, K}, DType::bf16);
    const Tensor y = be.allocate({T, N}, type);
    NormalPool(be, 1.0F, type).fill(1, x);
    NormalPool(be, 0.02F, DType::bf16).fill(2, w);
    const auto work = [=, &be] { be.matmul(x, w, {}, y); };
    return awaited(be, work, [=, &be] {
      // A few rows are proof enough, and cheap.
      const int64_t rows = std::min<int64_t>(T, 4);
      const std::vector<double> a = widened(values_of(be, x.slice(0, rows)));
      const std::vector<double> b = widened(values_of(be, w));
      std::vector<double> wanted(static_cast<size_t>(rows * N));
      reference::matmul<double>(a.data(), b.data(), nullptr, MatmulForm::nt, false, {rows, N, K},
                                wanted.data());
      return relative_error(values_of(be, y.slice(0, rows)), wanted);
    });
  };
  return c;
}

std::vector<Case> lora_cases() {
  std::vector<Case> cases;
  for (const int64_t d : {512, 1024, 2048}) {
    cases.push_back(delta_case({64, d, 8}));
  }
  cases.push_back(delta_case({64, 512, 16}));
  for (const int64_t r : {4, 16, 32, 64}) {
    cases.push_back(delta_case({64, 1024, r}));
  }
  cases.push_back(delta_case({64, 1024, 8, 32}));
  for (const int64_t d : {512, 1024, 2048}) {
    cases.push_back(linear_case({64, d, 8}));
  }
  cases.push_back(linear_case({64, 512, 16}));
  cases.push_back(step_case({2, 16, 512, 8}, false));
  cases.push_back(step_case({4, 64, 512, 8}, true));
  cases.push_back(adamw_case(int64_t{512} * 512));
  // q_proj, k_proj, gate_proj and down_proj of Qwen2.5-0.5B
  cases.push_back(gemm_case({512, 896, 896}));
  cases.push_back(gemm_case({512, 128, 896}));
  cases.push_back(gemm_case({512, 4864, 896}));
  cases.push_back(gemm_case({512, 896, 4864}));
  return cases;
}

}  // namespace wick::bench
