// Attention of training: sequences laid end to end, forward alone and with its gradients.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "bench/builders.h"
#include "bench/inputs.h"
#include "tests/reference/attention.h"

namespace wick::bench {

namespace {

struct AttentionSetup {
  AttentionSetup(Backend& be, const AttentionSizes& s, bool with_gradients)
      : backend(be),
        sizes(s),
        gradients(with_gradients),
        args{.scale = 1.0F / std::sqrt(static_cast<float>(s.D))} {
    const int64_t tokens = sizes.B * sizes.T;
    const DType type = be.activation_type(sizes.dtype);
    const Shape queries{tokens, sizes.H, sizes.D};
    const Shape keys{tokens, sizes.G, sizes.D};
    q = normal_tensor(be, queries, 1.0F, 1, type);
    k = normal_tensor(be, keys, 1.0F, 2, type);
    v = normal_tensor(be, keys, 1.0F, 3, type);
    o = be.allocate(queries, type);
    lse = be.allocate({tokens, sizes.H}, DType::f32);
    std::vector<int32_t> runs;
    for (int64_t b = 0; b < sizes.B; ++b) {
      const auto begin = static_cast<int32_t>(b * sizes.T);
      const auto count = static_cast<int32_t>(sizes.T);
      runs.insert(runs.end(), {begin, count, begin, count});
    }
    spans = be.allocate({sizes.B, 4}, DType::i32);
    be.upload(std::as_bytes(std::span(runs)), spans);
    if (gradients) {
      d_o = normal_tensor(be, queries, 1.0F, 4, type);
      dq = be.allocate(queries, type);
      dk = be.allocate(keys, type);
      dv = be.allocate(keys, type);
    }
  }

  void run() const {
    backend.attention(q, k, v, spans, args, o, lse);
    if (gradients) {
      backend.attention_backward(q, k, v, o, lse, d_o, spans, args, dq, dk, dv);
    }
  }

  // The last tokens of the last sequence are proof enough: these queries see all of its keys, and
  // no other query sees theirs, so that dk and dv are whole there too.
  double error() const {
    const int64_t proved = std::min<int64_t>(sizes.T, 16);
    const int64_t first = sizes.B * sizes.T - proved;
    const auto last_of = [&](const Tensor& t) {
      return values_of(backend, t.slice(first, proved));
    };
    const auto sequence_of = [&](const Tensor& t) {
      return widened(values_of(backend, t.slice((sizes.B - 1) * sizes.T, sizes.T)));
    };
    const std::vector<double> wide_q = widened(last_of(q));
    const std::vector<double> wide_k = sequence_of(k);
    const std::vector<double> wide_v = sequence_of(v);
    const std::array span = {0, static_cast<int32_t>(proved), 0, static_cast<int32_t>(sizes.T)};
    const reference::AttentionSize size{sizes.H, sizes.G, sizes.D, 1};
    std::vector<double> wide_o(wide_q.size());
    std::vector<double> wide_lse(static_cast<size_t>(proved * sizes.H));
    reference::attention(wide_q.data(), wide_k.data(), wide_v.data(), span.data(), args, size,
                         wide_o.data(), wide_lse.data());
    double error = relative_error(last_of(o), wide_o);
    if (gradients) {
      const std::vector<double> wide_d_o = widened(last_of(d_o));
      std::vector<double> wide_dq(wide_q.size());
      std::vector<double> wide_dk(wide_k.size());
      std::vector<double> wide_dv(wide_v.size());
      reference::attention_backward({wide_q.data(), wide_k.data(), wide_v.data(), wide_o.data(),
                                     wide_lse.data(), wide_d_o.data()},
                                    span.data(), args, size, wide_dq.data(), wide_dk.data(),
                                    wide_dv.data());
      const auto last_keys = [&](const std::vector<double>& of_sequence) {
        return std::span(of_sequence).last(static_cast<size_t>(proved * sizes.G * sizes.D));
      };
      error = std::max({error, relative_error(last_of(dq), wide_dq),
                        relative_error(last_of(dk), last_keys(wide_dk)),
                        relative_error(last_of(dv), last_keys(wide_dv))});
    }
    return error;
  }

  Backend& backend;
  AttentionSizes sizes;
  bool gradients;
  AttentionArgs args;
  Tensor q, k, v, o, lse, spans;
  Tensor d_o, dq, dk, dv;  // empty without gradients
};

}  // namespace

Case attention_case(const AttentionSizes& sizes, bool gradients) {
  const auto& [B, T, H, G, D, dtype] = sizes;
  const double pairs = 0.5 * static_cast<double>(B * T * (T + 1));
  // q and o, then those two, d_o and dq; k and v, then those two, dk and dv. lse: written and read.
  const double values =
      static_cast<double>(B * T * D * (gradients ? 6 * H + 6 * G : 2 * H + 2 * G));
  const double statistics = static_cast<double>(B * T * H * (gradients ? 2 : 1));
  Case c{.suite = gradients ? "training" : "inference",
         .name = fmt::format("{}:B={},T={},H={},G={},D={}{}",
                             gradients ? "attention_gradients" : "attention", B, T, H, G, D,
                             dtype_suffix(dtype)),
         .flops = (gradients ? 14.0 : 4.0) * pairs * static_cast<double>(H * D),
         .bytes = static_cast<double>(size_of(dtype)) * values + 4.0 * statistics,
         .error_limit = error_limit(dtype)};
  c.prepare = [sizes, gradients](Backend& be) {
    const auto setup = std::make_shared<AttentionSetup>(be, sizes, gradients);
    return awaited(
        be, [setup] { setup->run(); }, [setup] { return setup->error(); });
  };
  return c;
}

}  // namespace wick::bench
