// Row-wise kernels at [4, 16, 1024]: softmax, layer norm, RMS norm.
#include <fmt/core.h>

#include "bench/builders.h"
#include "bench/inputs.h"
#include "tests/reference/rowwise.h"

namespace wick::bench {

namespace {

constexpr int64_t kRows = 64;
constexpr int64_t kColumns = 1024;
constexpr float kEpsilon = 1e-6F;

Case rowwise_case(const std::string& kind, double flops_a_value,
                  std::function<PreparedCase(Backend&)> prepare) {
  const auto values = static_cast<double>(kRows * kColumns);
  return {.suite = "inference",
          .name = fmt::format("{}:T={},C={}", kind, kRows, kColumns),
          .flops = flops_a_value * values,
          .bytes = 8.0 * values,
          .prepare = std::move(prepare)};
}

PreparedCase prepare_rms_norm(Backend& be) {
  const Tensor x = normal_tensor(be, {kRows, kColumns}, 1.0F, 1);
  const Tensor w = normal_tensor(be, {kColumns}, 1.0F, 2);
  const Tensor y = be.allocate({kRows, kColumns}, DType::f32);
  const auto work = [=, &be] { be.rms_norm(x, w, kEpsilon, y, {}); };
  const auto error = [=, &be] {
    const std::vector<double> wide_x = widened(values_of(be, x));
    const std::vector<double> wide_w = widened(values_of(be, w));
    std::vector<double> wanted(wide_x.size());
    reference::rms_norm<double>(wide_x.data(), wide_w.data(), kEpsilon, kRows, kColumns,
                                wanted.data(), nullptr);
    return relative_error(values_of(be, y), wanted);
  };
  return awaited(be, work, error);
}

PreparedCase prepare_layer_norm(Backend& be) {
  const Tensor x = normal_tensor(be, {kRows, kColumns}, 1.0F, 1);
  const Tensor w = normal_tensor(be, {kColumns}, 1.0F, 2);
  const Tensor b = normal_tensor(be, {kColumns}, 1.0F, 3);
  const Tensor y = be.allocate({kRows, kColumns}, DType::f32);
  const auto work = [=, &be] { be.layer_norm(x, w, b, kEpsilon, y, {}); };
  const auto error = [=, &be] {
    const std::vector<double> wide_x = widened(values_of(be, x));
    const std::vector<double> wide_w = widened(values_of(be, w));
    const std::vector<double> wide_b = widened(values_of(be, b));
    std::vector<double> wanted(wide_x.size());
    std::vector<double> mean_rstd(2 * kRows);
    reference::layer_norm<double>(wide_x.data(), wide_w.data(), wide_b.data(), kEpsilon, kRows,
                                  kColumns, wanted.data(), mean_rstd.data());
    return relative_error(values_of(be, y), wanted);
  };
  return awaited(be, work, error);
}

PreparedCase prepare_softmax(Backend& be) {
  const Tensor x = normal_tensor(be, {kRows, kColumns}, 1.0F, 1);
  const Tensor y = be.allocate({kRows, kColumns}, DType::f32);
  const auto work = [=, &be] { be.softmax(x, y); };
  const auto error = [=, &be] {
    const std::vector<double> wide_x = widened(values_of(be, x));
    std::vector<double> wanted(wide_x.size());
    reference::softmax<double>(wide_x.data(), kRows, kColumns, wanted.data());
    return relative_error(values_of(be, y), wanted);
  };
  return awaited(be, work, error);
}

}  // namespace

std::vector<Case> rowwise_cases() {
  // Flops a value: an exponential counts as one.
  return {rowwise_case("softmax", 4, prepare_softmax),
          rowwise_case("layer_norm", 7, prepare_layer_norm),
          rowwise_case("rms_norm", 4, prepare_rms_norm)};
}

}  // namespace wick::bench
