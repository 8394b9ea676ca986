// The LoRA micro-cases: delta, frozen linear with delta, gradients, whole step, AdamW, and the
// model's products.
#include <fmt/core.h>

#include <array>

#include <algorithm>
#include <cmath>

#include "bench/case.h"
#include "bench/inputs.h"
#include "tests/reference/lora.h"
#include "tests/reference/loss.h"

namespace wick::bench {

namespace {

constexpr float kScaling = 2.0F;

// Rows x, one or more adapters of a square layer, and their reference copies in double precision.
struct LoraSetup {
  LoraSetup(Backend& be, int64_t rows, int64_t width, int64_t rank, int64_t adapters)
      : backend(be), T(rows), d(width), r(rank) {
    x = normal_tensor(be, {T, d}, 1.0F, 1);
    s = be.allocate({T, r}, DType::f32);
    y = be.allocate({T, d}, DType::f32);
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

  // base + delta in double precision; `base` is empty for the delta alone.
  std::vector<double> expected(std::vector<double> base) {
    const std::vector<double> wide_x = widened(values_of(backend, x));
    std::vector<std::vector<double>> a, b;
    std::vector<reference::Adapter<double>> wide;
    for (const LoraFactors& factor : factors) {
      a.push_back(widened(values_of(backend, factor.a)));
      b.push_back(widened(values_of(backend, factor.b)));
      wide.push_back({a.back().data(), b.back().data(), r, kScaling});
    }
    std::vector<double> wide_s(static_cast<size_t>(T * r));
    base.resize(static_cast<size_t>(T * d));
    const int32_t* rows = which.empty() ? nullptr : which.data();
    reference::lora_forward(wide_x.data(), wide.data(), rows, {T, d, d, r}, wide_s.data(),
                            base.data());
    return base;
  }

  Backend& backend;
  int64_t T, d, r;
  Tensor x, s, y, row_adapter;
  std::vector<int32_t> which;  // the same in host memory; empty: all rows use adapter 0
  std::vector<LoraFactors> factors;
};

double delta_flops(int64_t T, int64_t d, int64_t r) {
  return 4.0 * static_cast<double>(T * d * r);
}

double delta_bytes(int64_t T, int64_t d, int64_t r, int64_t adapters) {
  return 4.0 * static_cast<double>(2 * T * d + 2 * adapters * d * r);
}

Case delta_case(int64_t T, int64_t d, int64_t r, int64_t adapters) {
  const bool grouped = adapters > 1;
  Case c{.suite = "inference",
         .name = grouped ? fmt::format("lora_grouped:T={},d={},r={},n={}", T, d, r, adapters)
                         : fmt::format("lora_delta:T={},d={},r={}", T, d, r),
         .flops = delta_flops(T, d, r),
         .bytes = delta_bytes(T, d, r, adapters)};
  c.prepare = [=](Backend& be) {
    auto setup = std::make_shared<LoraSetup>(be, T, d, r, adapters);
    const auto call = [setup, &be] {
      be.fill(0.0F, setup->y);
      be.lora_forward(setup->x, setup->factors, setup->row_adapter, setup->s, setup->y);
      be.synchronize();
    };
    const auto error = [setup, call, &be] {
      call();
      return relative_error(values_of(be, setup->y), setup->expected({}));
    };
    return PreparedCase{call, error};
  };
  return c;
}

Case linear_case(int64_t T, int64_t d, int64_t r) {
  Case c{.suite = "inference",
         .name = fmt::format("lora_linear:T={},d={},r={}", T, d, r),
         .flops = 2.0 * static_cast<double>(T * d * d) + delta_flops(T, d, r),
         .bytes = delta_bytes(T, d, r, 1) + 4.0 * static_cast<double>(d * d)};
  c.prepare = [=](Backend& be) {
    auto setup = std::make_shared<LoraSetup>(be, T, d, r, 1);
    const Tensor w = normal_tensor(be, {d, d}, 0.02F, 3);
    const auto call = [setup, w, &be] {
      be.matmul(setup->x, w, {}, setup->y);
      be.lora_forward(setup->x, setup->factors, {}, setup->s, setup->y);
      be.synchronize();
    };
    const auto error = [setup, call, w, &be] {
      call();
      const std::vector<double> wide_x = widened(values_of(be, setup->x));
      const std::vector<double> wide_w = widened(values_of(be, w));
      std::vector<double> base(static_cast<size_t>(setup->T * setup->d));
      reference::matmul<double>(wide_x.data(), wide_w.data(), nullptr, MatmulForm::nt, false,
                                {setup->T, setup->d, setup->d}, base.data());
      return relative_error(values_of(be, setup->y), setup->expected(std::move(base)));
    };
    return PreparedCase{call, error};
  };
  return c;
}

// The delta's forward pass, cross-entropy over its d outputs, and the gradients of A and B; with
// `optimizer`, AdamW over both as one arena.
struct StepSetup : LoraSetup {
  StepSetup(Backend& be, int64_t rows, int64_t width, int64_t rank)
      : LoraSetup(be, rows, width, rank, 1), scalars(be) {
    gradient_scale = tensor_of(be, std::array{1.0F / static_cast<float>(rows)}, {1});
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
    be.fill(0.0F, y);
    be.lora_forward(x, factors, {}, s, y);
    be.cross_entropy(targets, {gradient_scale}, y, losses);
    be.fill(0.0F, grads);
    be.lora_backward(x, s, y, factors[0], ds, grads.part(0, {r, d}), grads.part(d * r, {d, r}), {});
    if (optimizer) {
      const AdamwSegment segment{0, arena.elements(), 1.0F, 0.01F};
      be.adamw(grads, scalars.args({&segment, 1}), arena, m, v);
    }
    be.synchronize();
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

Case step_case(int64_t B, int64_t T, int64_t d, int64_t r, bool optimizer) {
  const int64_t rows = B * T;
  Case c{.suite = "training",
         .name = fmt::format("{}:B={},T={},d={},r={}", optimizer ? "lora_step" : "lora_gradients",
                             B, T, d, r),
         // dA and dB and dS cost what the forward pass costs, half as much again; the rest is a few
         // flops a value.
         .flops = 2.5 * delta_flops(rows, d, r),
         .bytes = delta_bytes(rows, d, r, 1) * 2.0};
  c.prepare = [=](Backend& be) {
    auto setup = std::make_shared<StepSetup>(be, rows, d, r);
    const auto error = [setup, &be] {
      setup->run(false);
      return relative_error(values_of(be, setup->grads), setup->expected_gradients());
    };
    return PreparedCase{[setup, optimizer] { setup->run(optimizer); }, error};
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
    const auto call = [=, &be] {
      be.adamw(g, scalars.args({&segment, 1}), p, m, v);
      be.synchronize();
    };
    const auto error = [=, &be] {
      std::vector<double> wide_p = widened(values_of(be, p));
      std::vector<double> wide_m = widened(values_of(be, m));
      std::vector<double> wide_v = widened(values_of(be, v));
      const std::vector<double> wide_g = widened(values_of(be, g));
      call();
      reference::adamw(wide_g.data(), scalars.args({&segment, 1}), {.learning_rate = 1e-4},
                       wide_p.data(), wide_m.data(), wide_v.data());
      return relative_error(values_of(be, p), wide_p);
    };
    return PreparedCase{call, error};
  };
  return c;
}

// A product of the Qwen2.5-0.5B shape with the base in bf16; the peers have it in f32.
Case gemm_case(int64_t T, int64_t N, int64_t K) {
  Case c{.suite = "training",
         .name = fmt::format("gemm:T={},N={},K={}", T, N, K),
         .flops = 2.0 * static_cast<double>(T * N * K),
         .bytes = 4.0 * static_cast<double>(T * (N + K)) + 2.0 * static_cast<double>(N * K)};
  c.prepare = [=](Backend& be) {
    const Tensor x = normal_tensor(be, {T, K}, 1.0F, 1);
    const Tensor w = normal_tensor(be, {N, K}, 0.02F, 2, DType::bf16);
    const Tensor y = be.allocate({T, N}, DType::f32);
    const auto call = [=, &be] {
      be.matmul(x, w, {}, y);
      be.synchronize();
    };
    const auto error = [=, &be] {
      call();
      const Tensor wide_weight = be.allocate({N, K}, DType::f32);
      be.cast(w, wide_weight);
      // A few rows are proof enough, and cheap.
      const int64_t rows = std::min<int64_t>(T, 4);
      const std::vector<double> a = widened(values_of(be, x.slice(0, rows)));
      const std::vector<double> b = widened(values_of(be, wide_weight));
      std::vector<double> wanted(static_cast<size_t>(rows * N));
      reference::matmul<double>(a.data(), b.data(), nullptr, MatmulForm::nt, false, {rows, N, K},
                                wanted.data());
      return relative_error(values_of(be, y.slice(0, rows)), wanted);
    };
    return PreparedCase{call, error};
  };
  return c;
}

}  // namespace

std::vector<Case> lora_cases() {
  std::vector<Case> cases;
  for (const int64_t d : {512, 1024, 2048}) {
    cases.push_back(delta_case(64, d, 8, 1));
  }
  cases.push_back(delta_case(64, 512, 16, 1));
  for (const int64_t r : {4, 16, 32, 64}) {
    cases.push_back(delta_case(64, 1024, r, 1));
  }
  cases.push_back(delta_case(64, 1024, 8, 32));
  for (const int64_t d : {512, 1024, 2048}) {
    cases.push_back(linear_case(64, d, 8));
  }
  cases.push_back(linear_case(64, 512, 16));
  cases.push_back(step_case(2, 16, 512, 8, false));
  cases.push_back(step_case(4, 64, 512, 8, true));
  cases.push_back(adamw_case(512 * 512));
  // q_proj, k_proj, gate_proj and down_proj of Qwen2.5-0.5B
  cases.push_back(gemm_case(512, 896, 896));
  cases.push_back(gemm_case(512, 128, 896));
  cases.push_back(gemm_case(512, 4864, 896));
  cases.push_back(gemm_case(512, 896, 4864));
  return cases;
}

}  // namespace wick::bench
