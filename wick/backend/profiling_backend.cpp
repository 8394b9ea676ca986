// Each kernel with what it has to do at least: its flops, and the bytes of its inputs and outputs.
#include "wick/backend/profiling_backend.h"

#include <fmt/core.h>

#include <algorithm>
#include <vector>

namespace wick {

namespace {

// Of those that are there.
template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (... + (tensors ? static_cast<double>(tensors.bytes()) : 0.0));
}

double count(int64_t value) {
  return static_cast<double>(value);
}

std::string sizes(In x) {
  return x.shape().to_string();
}

std::string sizes_and_type(In x) {
  return fmt::format("{} {}", sizes(x), name_of(x.dtype()));
}

// Pairs that one run of queries sees: query i of n stands at key position k - n + i.
double pairs_of_span(int64_t queries, int64_t keys, const AttentionArgs& args) {
  double pairs = 0;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t seen = args.causal ? keys - queries + i + 1 : keys;
    pairs += count(args.window > 0 ? std::min(seen, args.window) : seen);
  }
  return pairs;
}

std::string attention_shape(In q, In k) {
  return fmt::format("q{} k{}", sizes(q), sizes(k));
}

struct AdapterSizes {
  double bytes = 0;  // of A and B of all adapters
  int64_t rank = 0;  // the largest
};

AdapterSizes sizes_of(std::span<const LoraFactors> adapters) {
  AdapterSizes sum;
  for (const LoraFactors& factors : adapters) {
    sum.bytes += bytes_of(factors.a, factors.b);
    sum.rank = std::max(sum.rank, factors.a.dim(0));
  }
  return sum;
}

KernelCost cost_of(const Tensor& x, std::span<const LinearTerm> terms) {
  KernelCost cost{.bytes = bytes_of(x)};
  for (const LinearTerm& term : terms) {
    const AdapterSizes sum = sizes_of(term.adapters);
    const double adapter = count(sum.rank) * count(x.columns() + term.y.columns());
    cost.flops += 2.0 * count(x.rows()) * (count(term.weight.elements()) + adapter);
    cost.bytes += bytes_of(term.weight, term.bias, term.row_adapter, term.s, term.y);
    cost.bytes += sum.bytes;
  }
  return cost;
}

std::string sizes_of(const Tensor& x, std::span<const LinearTerm> terms) {
  std::string shape = sizes(x) + " ->";
  for (const LinearTerm& term : terms) {
    const AdapterSizes sum = sizes_of(term.adapters);
    shape += fmt::format(" {}", term.y.columns());
    shape += sum.rank > 0 ? fmt::format(" r{}", sum.rank) : "";
  }
  return shape;
}

KernelCost gated_cost_of(const Tensor& x, std::span<const LinearTerm> g_and_u, const Tensor& h) {
  KernelCost cost = cost_of(x, g_and_u);
  cost.flops += 6.0 * count(h.elements());
  cost.bytes += bytes_of(h) - bytes_of(g_and_u[0].y, g_and_u[1].y);
  return cost;
}

// With a norm before it, which is not stored.
KernelCost after_norm(KernelCost cost, const NormedInput& input) {
  cost.flops += 5.0 * count(input.x.elements());
  cost.bytes += bytes_of(input.a, input.b, input.sum, input.weight) - bytes_of(input.x);
  return cost;
}

}  // namespace

template <class Work>
void ProfilingBackend::timed(const char* kernel, const std::string& shape, const KernelCost& cost,
                             const Work& work) {
  const Profile::Clock::time_point begin = Profile::Clock::now();
  work();
  inner_.synchronize();
  profile_.add(kernel, shape, begin, Profile::Clock::now(), cost);
}

double ProfilingBackend::visible_pairs(In spans, const AttentionArgs& args) {
  std::vector<int32_t> values(static_cast<size_t>(spans.elements()));
  inner_.download(spans, std::as_writable_bytes(std::span(values)));
  double pairs = 0;
  for (size_t s = 0; s + 3 < values.size(); s += 4) {
    pairs += pairs_of_span(values[s + 1], values[s + 3], args);
  }
  return pairs;
}

// ---- memory

void ProfilingBackend::upload(std::span<const std::byte> host, Out to) {
  timed("upload", "", {.bytes = bytes_of(to)}, [&] { inner_.upload(host, to); });
}

void ProfilingBackend::download(In from, std::span<std::byte> host) {
  timed("download", "", {.bytes = bytes_of(from)}, [&] { inner_.download(from, host); });
}

void ProfilingBackend::copy(In from, Out to) {
  timed("copy", "", {.bytes = bytes_of(from, to)}, [&] { inner_.copy(from, to); });
}

// ---- products

void ProfilingBackend::matmul(In a, In b, const MatmulArgs& args, Out c) {
  const char* kernel = args.form == MatmulForm::nt   ? "matmul nt"
                       : args.form == MatmulForm::nn ? "matmul nn"
                                                     : "matmul tn";
  const int64_t inner = args.form == MatmulForm::tn ? a.rows() : a.columns();
  const KernelCost cost{.flops = 2.0 * count(c.elements()) * count(inner),
                        .bytes = bytes_of(a, b, c) + (args.accumulate ? bytes_of(c) : 0.0)};
  timed(kernel, fmt::format("{} x {}", sizes(a), sizes_and_type(b)), cost,
        [&] { inner_.matmul(a, b, args, c); });
}

void ProfilingBackend::lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter,
                                    Out s, Out y) {
  const AdapterSizes sum = sizes_of(adapters);
  const KernelCost cost{
      .flops = 2.0 * count(x.rows()) * count(sum.rank) * count(x.columns() + y.columns()),
      .bytes = bytes_of(x, row_adapter, s) + 2 * bytes_of(y) + sum.bytes};
  timed("lora_forward",
        fmt::format("{} -> {}, r{}, {} adapters", sizes(x), y.columns(), sum.rank, adapters.size()),
        cost, [&] { inner_.lora_forward(x, adapters, row_adapter, s, y); });
}

void ProfilingBackend::lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter,
                                  Out s, Out y) {
  const AdapterSizes sum = sizes_of(adapters);
  const KernelCost cost{
      .flops = 2.0 * count(x.rows()) * count(sum.rank) * count(x.columns() + y.columns()),
      .bytes = bytes_of(x, row_adapter, s, y) + sum.bytes};
  timed("lora_delta",
        fmt::format("{} -> {}, r{}, {} adapters", sizes(x), y.columns(), sum.rank, adapters.size()),
        cost, [&] { inner_.lora_delta(x, adapters, row_adapter, s, y); });
}

void ProfilingBackend::lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da,
                                     Out db, Out dx) {
  const int64_t rank = adapter.a.dim(0);
  const double product = 2.0 * count(x.rows()) * count(rank);
  const KernelCost cost{
      .flops = product * (2.0 * count(dy.columns()) + (dx ? 2.0 : 1.0) * count(x.columns())),
      .bytes = bytes_of(x, s, dy, adapter.a, adapter.b, ds) + 2 * bytes_of(da, db, dx)};
  timed("lora_backward", fmt::format("{} -> {}, r{}", sizes(x), dy.columns(), rank), cost,
        [&] { inner_.lora_backward(x, s, dy, adapter, ds, da, db, dx); });
}

void ProfilingBackend::lora_linear_backward(const LoraLinearInputs& inputs, bool accumulate, Out ds,
                                            Out da, Out db, Out dx) {
  const auto& [x, s, dy, weight, adapter] = inputs;
  const int64_t rank = adapter.a.dim(0);
  const double rows = 2.0 * count(x.rows());
  const double wide = count(x.columns()) + count(dy.columns());
  const KernelCost cost{
      .flops = rows * (count(x.columns()) * count(dy.columns()) + 2.0 * count(rank) * wide),
      .bytes = bytes_of(x, s, dy, weight, adapter.a, adapter.b, ds) + 2 * bytes_of(da, db) +
               (accumulate ? 2 : 1) * bytes_of(dx)};
  timed("lora_linear_backward", fmt::format("{} -> {}, r{}", sizes(x), dy.columns(), rank), cost,
        [&] { inner_.lora_linear_backward(inputs, accumulate, ds, da, db, dx); });
}

void ProfilingBackend::linears(In x, std::span<const LinearTerm> terms) {
  timed("linears", sizes_of(x, terms), cost_of(x, terms), [&] { inner_.linears(x, terms); });
}

void ProfilingBackend::gated_linears(In x, std::span<const LinearTerm> g_and_u,
                                     Activation activation, Out h) {
  timed("gated_linears", sizes_of(x, g_and_u), gated_cost_of(x, g_and_u, h),
        [&] { inner_.gated_linears(x, g_and_u, activation, h); });
}

void ProfilingBackend::normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) {
  timed("normed_linears", sizes_of(input.x, terms), after_norm(cost_of(input.x, terms), input),
        [&] { inner_.normed_linears(input, terms); });
}

void ProfilingBackend::normed_gated_linears(const NormedInput& input,
                                            std::span<const LinearTerm> g_and_u,
                                            Activation activation, Out h) {
  timed("normed_gated_linears", sizes_of(input.x, g_and_u),
        after_norm(gated_cost_of(input.x, g_and_u, h), input),
        [&] { inner_.normed_gated_linears(input, g_and_u, activation, h); });
}

void ProfilingBackend::add_column_sums(In x, Out out) {
  timed("add_column_sums", sizes(x),
        {.flops = count(x.elements()), .bytes = bytes_of(x) + 2 * bytes_of(out)},
        [&] { inner_.add_column_sums(x, out); });
}

// ---- attention

void ProfilingBackend::attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o,
                                 Out lse) {
  // Two products of D a pair and head.
  const KernelCost cost{.flops = 4.0 * visible_pairs(spans, args) * count(q.dim(1) * q.dim(2)),
                        .bytes = bytes_of(q, k, v, spans, o, lse)};
  timed("attention", attention_shape(q, k), cost,
        [&] { inner_.attention(q, k, v, spans, args, o, lse); });
}

void ProfilingBackend::attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                                          const AttentionArgs& args, Out dq, Out dk, Out dv) {
  // Five: q k^T again, dP = dO V^T, dV, dQ, dK.
  const KernelCost cost{.flops = 10.0 * visible_pairs(spans, args) * count(q.dim(1) * q.dim(2)),
                        .bytes = bytes_of(q, k, v, o, lse, d_o, spans, dq, dk, dv)};
  timed("attention_backward", attention_shape(q, k), cost,
        [&] { inner_.attention_backward(q, k, v, o, lse, d_o, spans, args, dq, dk, dv); });
}

void ProfilingBackend::kv_append(In x, In slots, Out cache) {
  timed("kv_append", sizes(x), {.bytes = 2 * bytes_of(x) + bytes_of(slots)},
        [&] { inner_.kv_append(x, slots, cache); });
}

void ProfilingBackend::rope(In x, In positions, In table, RopeDirection direction, Out y) {
  // Every token reads a row of the table.
  const double angles = 4.0 * count(x.dim(0) * table.columns());
  timed("rope", sizes(x),
        {.flops = 3.0 * count(x.elements()), .bytes = bytes_of(x, positions, y) + angles},
        [&] { inner_.rope(x, positions, table, direction, y); });
}

void ProfilingBackend::rope_append(In positions, In table, Out q, Out k, In v, Out k_cache,
                                   Out v_cache) {
  const double angles = 4.0 * count(q.dim(0) * table.columns());
  timed("rope_append", sizes(q),
        {.flops = 3.0 * count(q.elements() + k.elements()),
         .bytes = 2 * bytes_of(q, k, v) + bytes_of(positions) + angles},
        [&] { inner_.rope_append(positions, table, q, k, v, k_cache, v_cache); });
}

void ProfilingBackend::append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache,
                                        In spans, const AttentionArgs& args, Out o) {
  const Tensor& q = tokens.q;
  const double pairs = visible_pairs(spans, args);
  const double angles = 4.0 * count(q.dim(0) * tokens.rope_table.columns());
  timed("append_attention", attention_shape(q, k_cache),
        {.flops = (4.0 * pairs + 3.0 * count(q.dim(0))) * count(q.dim(1) * q.dim(2)),
         .bytes = bytes_of(q, k_cache, v_cache, spans, o) + 2 * bytes_of(tokens.k, tokens.v) +
                  bytes_of(tokens.positions) + angles},
        [&] { inner_.append_attention(tokens, k_cache, v_cache, spans, args, o); });
}

// ---- row-wise

void ProfilingBackend::rms_norm(In x, In weight, float eps, Out y, Out rstd) {
  timed("rms_norm", sizes(x),
        {.flops = 4.0 * count(x.elements()), .bytes = bytes_of(x, weight, y, rstd)},
        [&] { inner_.rms_norm(x, weight, eps, y, rstd); });
}

void ProfilingBackend::rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                                         Out dweight) {
  const double written = bytes_of(dx) * (accumulate ? 2.0 : 1.0) + 2 * bytes_of(dweight);
  timed("rms_norm_backward", sizes(x),
        {.flops = 8.0 * count(x.elements()), .bytes = bytes_of(x, weight, rstd, dy) + written},
        [&] { inner_.rms_norm_backward(x, weight, rstd, dy, accumulate, dx, dweight); });
}

void ProfilingBackend::add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd) {
  timed("add_rms_norm", sizes(a),
        {.flops = 5.0 * count(a.elements()), .bytes = bytes_of(a, b, weight, sum, y, rstd)},
        [&] { inner_.add_rms_norm(a, b, weight, eps, sum, y, rstd); });
}

void ProfilingBackend::layer_norm(In x, In weight, In bias, float eps, Out y, Out mean_rstd) {
  timed("layer_norm", sizes(x),
        {.flops = 7.0 * count(x.elements()), .bytes = bytes_of(x, weight, bias, y, mean_rstd)},
        [&] { inner_.layer_norm(x, weight, bias, eps, y, mean_rstd); });
}

void ProfilingBackend::layer_norm_backward(In x, In weight, In mean_rstd, In dy, bool accumulate,
                                           Out dx, Out dweight, Out dbias) {
  const double written = bytes_of(dx) * (accumulate ? 2.0 : 1.0) + 2 * bytes_of(dweight, dbias);
  timed(
      "layer_norm_backward", sizes(x),
      {.flops = 12.0 * count(x.elements()), .bytes = bytes_of(x, weight, mean_rstd, dy) + written},
      [&] {
        inner_.layer_norm_backward(x, weight, mean_rstd, dy, accumulate, dx, dweight, dbias);
      });
}

void ProfilingBackend::softmax(In x, Out y) {
  timed("softmax", sizes(x), {.flops = 5.0 * count(x.elements()), .bytes = bytes_of(x, y)},
        [&] { inner_.softmax(x, y); });
}

void ProfilingBackend::gate(In g, In u, Activation activation, Out h) {
  timed("gate", sizes(g), {.flops = 6.0 * count(g.elements()), .bytes = bytes_of(g, u, h)},
        [&] { inner_.gate(g, u, activation, h); });
}

void ProfilingBackend::gate_backward(In g, In u, In dh, Activation activation, Out dg, Out du) {
  timed("gate_backward", sizes(g),
        {.flops = 10.0 * count(g.elements()), .bytes = bytes_of(g, u, dh, dg, du)},
        [&] { inner_.gate_backward(g, u, dh, activation, dg, du); });
}

void ProfilingBackend::add(In a, In b, Out y) {
  timed("add", sizes(a), {.flops = count(a.elements()), .bytes = bytes_of(a, b, y)},
        [&] { inner_.add(a, b, y); });
}

void ProfilingBackend::fill(float value, Out y) {
  timed("fill", "", {.bytes = bytes_of(y)}, [&] { inner_.fill(value, y); });
}

void ProfilingBackend::cast(In x, Out y) {
  timed("cast", "", {.bytes = bytes_of(x, y)}, [&] { inner_.cast(x, y); });
}

void ProfilingBackend::dropout(In x, const DropoutArgs& args, Out y) {
  timed("dropout", sizes(x), {.bytes = bytes_of(x, y)}, [&] { inner_.dropout(x, args, y); });
}

void ProfilingBackend::gather_rows(In table, In ids, Out y) {
  const double rows = count(y.elements()) * static_cast<double>(size_of(table.dtype()));
  timed("gather_rows", sizes(y), {.bytes = rows + bytes_of(ids, y)},
        [&] { inner_.gather_rows(table, ids, y); });
}

void ProfilingBackend::scatter_add_rows(In x, In ids, Out table) {
  timed("scatter_add_rows", sizes(x),
        {.flops = count(x.elements()), .bytes = 3 * bytes_of(x) + bytes_of(ids)},
        [&] { inner_.scatter_add_rows(x, ids, table); });
}

// ---- loss, optimiser, sampling

void ProfilingBackend::cross_entropy(In targets, const CrossEntropyArgs& args, Out logits,
                                     Out losses) {
  const double passes = args.gradient_scale ? 2.0 : 1.0;
  timed("cross_entropy", sizes(logits),
        {.flops = 5.0 * count(logits.elements()),
         .bytes = passes * bytes_of(logits) + bytes_of(targets, losses)},
        [&] { inner_.cross_entropy(targets, args, logits, losses); });
}

void ProfilingBackend::adamw(In grad, const AdamwArgs& args, Out p, Out m, Out v) {
  timed("adamw", sizes(p),
        {.flops = 14.0 * count(p.elements()), .bytes = bytes_of(grad) + 2 * bytes_of(p, m, v)},
        [&] { inner_.adamw(grad, args, p, m, v); });
}

void ProfilingBackend::sum_squares(In x, Out out) {
  timed("sum_squares", "", {.flops = 2.0 * count(x.elements()), .bytes = bytes_of(x)},
        [&] { inner_.sum_squares(x, out); });
}

void ProfilingBackend::sample(const SampleArgs& args, Out logits, Out id) {
  timed("sample", sizes(logits), {.bytes = bytes_of(logits)},
        [&] { inner_.sample(args, logits, id); });
}

}  // namespace wick
