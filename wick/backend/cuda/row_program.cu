// Collects the operations of a row, shares their work out to the blocks, and launches them.
#include "wick/backend/cuda/row_program.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/row_plan.h"
#include "wick/backend/cuda/row_program_launch.h"

namespace wick::cuda {
namespace {

constexpr int kMostRank = 64;
constexpr int kAttentionBytes = 32 * 1024;  // of shared memory, for the sums of a head's warps
constexpr int kMostHeadBlocks = 16;

// Of a tensor.
struct Addresses {
  const char *begin, *end;
};

Addresses addresses_of(const Tensor& tensor) {
  const auto* begin = static_cast<const char*>(tensor.address());
  return {begin, begin + tensor.bytes()};
}

bool same(const Tensor& a, const Tensor& b) {
  return a && b && a.address() == b.address() && a.bytes() == b.bytes() && a.dtype() == b.dtype();
}

// Which member of a phase is its n-th output.
void drop_output(RowPhase& phase, int output) {
  if (phase.attends) {
    phase.attention.o = nullptr;
    return;
  }
  LinearsPhase& linears = phase.linears;
  if (output == 0) {
    linears.sum = nullptr;
  } else if (output == 1) {
    linears.h = nullptr;
  } else if (output % 2 == 0) {
    linears.term[output / 2 - 1].y = nullptr;
  } else {
    linears.term[output / 2 - 1].s = nullptr;
  }
}
constexpr int kSumOutput = 0;
constexpr int kGatedOutput = 1;
constexpr int output_y(int term) {
  return 2 * term + 2;
}
constexpr int output_s(int term) {
  return 2 * term + 3;
}

bool is_bf16(const Tensor& tensor) {
  return tensor.dtype() == DType::bf16 && aligned_to(tensor.address(), 16);
}

bool takes_terms(int64_t in, std::span<const LinearTerm> terms) {
  if (terms.empty() || terms.size() > kRowTerms || in % kRunColumns != 0) {
    return false;
  }
  return std::ranges::all_of(terms, [](const LinearTerm& term) {
    const bool adapts = !term.adapters.empty();
    return is_bf16(term.weight) && term.weight.rows() % 2 == 0 && term.weight.rows() > 0 &&
           term.adapters.size() <= 1 && (!adapts || !term.row_adapter) &&
           (!adapts ||
            (term.adapters[0].a.rows() <= kMostRank &&
             aligned_to(term.adapters[0].a.address(), 16) &&
             aligned_to(term.adapters[0].b.address(), 16) && term.s.dtype() == DType::bf16));
  });
}

}  // namespace

struct RowProgram::State {
  explicit State(const Context& of_backend) : context(of_backend), planner(of_backend) {}

  const Context& context;
  RowExchange exchange;
  struct Free {
    void operator()(void* address) const { cudaFree(address); }
  };
  std::unique_ptr<void, Free> memory;
  bool waits = false;
  RowPlanner planner;              // has the operations that wait
  std::vector<Addresses> results;  // that they write
  Tensor kept;                     // the row that the last norm is of

  bool usable() const { return context.compute_capability >= 90; }
  void make_exchange();
  bool linears(const Tensor& x, const NormedInput* norm, std::span<const LinearTerm> terms,
               const Activation* activation, const Tensor* h);
  bool attention(const FreshTokens& tokens, const Tensor& k_cache, const Tensor& v_cache,
                 const Tensor& spans, const AttentionArgs& args, const Tensor& o);
  // Whether the last operation's results, in their order and nothing else, are `tensors`.
  bool posts(std::initializer_list<const Tensor*> tensors) const;
  bool reads_results(const RowOperation& next) const;
  // `build` makes the operation from what waits now. False: there is no room for it even alone.
  template <class Build>
  bool add(const Build& build);
  bool take(RowOperation next);
  void flush();
  void drop();

 private:
  RowOperation linears_of(const Tensor& x, const NormedInput* norm,
                          std::span<const LinearTerm> terms, const Activation* activation,
                          const Tensor* h) const;
  void read_row(const Tensor& x, const NormedInput* norm, RowOperation& operation) const;
};

void RowProgram::State::make_exchange() {
  constexpr size_t kWords =
      RowExchange::kTurns * (RowExchange::kRowWords + RowExchange::kSumWords) +
      RowExchange::kPartWords;
  constexpr size_t kBytes = kWords * sizeof(uint64_t) + sizeof(RowExchange::State);
  void* address = nullptr;
  check_cuda(cudaMalloc(&address, kBytes), "memory for row programs");
  memory.reset(address);
  exchange.rows = static_cast<uint64_t*>(address);
  exchange.sums = exchange.rows + RowExchange::kTurns * RowExchange::kRowWords;
  exchange.parts = exchange.sums + RowExchange::kTurns * RowExchange::kSumWords;
  exchange.state = reinterpret_cast<RowExchange::State*>(exchange.parts + RowExchange::kPartWords);
  check_cuda(cudaMemsetAsync(address, 0, kBytes, context.stream), "clearing it");
  check_cuda(cudaMemsetAsync(&exchange.state->tag, 1, sizeof(uint32_t), context.stream),
             "clearing it");
}

bool RowProgram::State::posts(std::initializer_list<const Tensor*> tensors) const {
  if (planner.operations().empty()) {
    return false;
  }
  const RowOperation& last = planner.operations().back();
  const size_t results =
      last.phase.attends || last.phase.linears.gated ? 1 : last.phase.linears.terms;
  if (tensors.size() != results) {
    return false;
  }
  size_t i = 0;
  int64_t elements = 0;
  for (const Tensor* tensor : tensors) {
    if (tensor->dtype() != DType::bf16 || !same(*tensor, last.writes[i++].first)) {
      return false;
    }
    elements += tensor->elements();
  }
  return elements <= 2 * int64_t{RowExchange::kRowWords};
}

bool RowProgram::State::reads_results(const RowOperation& next) const {
  return std::ranges::any_of(next.reads, [&](const Tensor& tensor) {
    const Addresses read = addresses_of(tensor);
    return std::ranges::any_of(results, [&](const Addresses& write) {
      return read.begin < write.end && write.begin < read.end;
    });
  });
}

RowOperation RowProgram::State::linears_of(const Tensor& x, const NormedInput* norm,
                                           std::span<const LinearTerm> terms,
                                           const Activation* activation, const Tensor* h) const {
  RowOperation operation;
  LinearsPhase& phase = operation.phase.linears;
  phase.in = static_cast<int>(terms[0].weight.columns());
  phase.per_column = 1.0F / static_cast<float>(phase.in);
  phase.terms = static_cast<int>(terms.size());
  phase.gated = activation != nullptr;
  if (phase.gated) {
    phase.gelu = *activation == Activation::gelu_tanh;
    phase.h = h->data<__nv_bfloat16>();
    operation.writes.emplace_back(*h, kGatedOutput);
  }
  for (int i = 0; i < phase.terms; ++i) {
    const LinearTerm& from = terms[i];
    RowTerm& term = phase.term[i];
    term.weight = from.weight.data<__nv_bfloat16>();
    term.channels = static_cast<int>(from.weight.rows());
    operation.weight_bytes += static_cast<int64_t>(from.weight.bytes());
    operation.pairs += phase.gated && i > 0 ? 0 : term.channels / 2;
    if (from.bias) {
      term.bias = from.bias.address();
      term.bias_type = from.bias.dtype();
    }
    if (!phase.gated) {
      term.y = from.y.address();
      term.y_type = from.y.dtype();
      operation.writes.emplace_back(from.y, output_y(i));
    }
  }
  for (int i = 0; i < phase.terms; ++i) {
    if (!terms[i].adapters.empty()) {
      const LoraFactors& adapter = terms[i].adapters[0];
      RowTerm& term = phase.term[i];
      term.a = adapter.a.data<float>();
      term.b = adapter.b.data<float>();
      term.scaling = adapter.scaling;
      term.rank = static_cast<int>(adapter.a.rows());
      term.s = terms[i].s.data<__nv_bfloat16>();
      operation.writes.emplace_back(terms[i].s, output_s(i));
    }
  }
  read_row(x, norm, operation);
  return operation;
}

// Where the operation's row comes from.
void RowProgram::State::read_row(const Tensor& x, const NormedInput* norm,
                                 RowOperation& operation) const {
  LinearsPhase& phase = operation.phase.linears;
  const auto reads = [&](const Tensor& tensor) {
    operation.reads.push_back(tensor);
    return tensor.data<__nv_bfloat16>();
  };
  if (norm == nullptr) {
    operation.follows = posts({&x});
    phase.b = operation.follows ? nullptr : reads(x);
    return;
  }
  phase.norms = true;
  phase.norm_weight = norm->weight.data<float>();
  phase.eps = norm->eps;
  phase.adds = static_cast<bool>(norm->b);
  phase.keeps_sum = same(kept, norm->a);
  if (!phase.keeps_sum) {
    phase.a = reads(norm->a);
  }
  if (phase.adds) {
    operation.follows = posts({&norm->b});
    phase.b = operation.follows ? nullptr : reads(norm->b);
    phase.sum = norm->sum.data<__nv_bfloat16>();
    operation.writes.emplace_back(norm->sum, kSumOutput);
  }
}

template <class Build>
bool RowProgram::State::add(const Build& build) {
  if (!planner.operations().empty()) {
    RowOperation next = build();
    if (next.follows && planner.operations().size() < kMostRowPhases && !reads_results(next) &&
        take(std::move(next))) {
      const std::span<RowOperation> all = planner.operations();
      all[all.size() - 2].phase.posts = true;
      return true;
    }
    flush();
  }
  return take(build());
}

bool RowProgram::State::take(RowOperation next) {
  std::vector<Addresses> written;
  for (const auto& [write, output] : next.writes) {
    written.push_back(addresses_of(write));
  }
  if (!planner.add(std::move(next))) {
    return false;
  }
  results.insert(results.end(), written.begin(), written.end());
  return true;
}

bool RowProgram::State::linears(const Tensor& x, const NormedInput* norm,
                                std::span<const LinearTerm> terms, const Activation* activation,
                                const Tensor* h) {
  const Tensor& row = norm != nullptr ? norm->a : x;
  if (!usable() || row.rows() != 1 || !is_bf16(row) || !takes_terms(row.columns(), terms)) {
    return false;
  }
  if (norm != nullptr &&
      (norm->weight.dtype() != DType::f32 || !aligned_to(norm->weight.address(), 16) ||
       (norm->b && (!is_bf16(norm->b) || !is_bf16(norm->sum))))) {
    return false;
  }
  if (activation != nullptr &&
      (terms.size() != 2 || terms[0].weight.rows() != terms[1].weight.rows() || !is_bf16(*h))) {
    return false;
  }
  if (!add([&] { return linears_of(x, norm, terms, activation, h); })) {
    return false;
  }
  if (norm != nullptr) {
    kept = norm->b ? norm->sum : norm->a;
  }
  return true;
}

bool RowProgram::State::attention(const FreshTokens& tokens, const Tensor& k_cache,
                                  const Tensor& v_cache, const Tensor& spans,
                                  const AttentionArgs& args, const Tensor& o) {
  const AttentionCall call = attention_call(tokens.q, k_cache, spans, args);
  const auto R = static_cast<int>(tokens.rope_table.columns());
  bool chunked = usable() && args.scale > 0.0F;
  for (const Tensor* tensor : {&tokens.q, &tokens.k, &tokens.v, &k_cache, &v_cache, &o}) {
    chunked = chunked && in_chunks(*tensor);
  }
  const int heads = call.H / call.G;
  if (!chunked || call.Tq != 1 || call.S != 1 || call.D > 128 || heads > kQueries || R % 16 != 0 ||
      !aligned_to(tokens.rope_table.address(), 16) || k_cache.elements() > INT32_MAX) {
    return false;
  }
  return add([&] {
    RowOperation operation;
    operation.follows = posts({&tokens.q, &tokens.k, &tokens.v});
    operation.head_width = call.D > 64 ? 128 : 64;
    operation.writes = {{o, 0}};
    operation.reads = {k_cache, v_cache, spans, tokens.positions};
    RowPhase& phase = operation.phase;
    phase.attends = true;
    phase.attention = {};
    AttentionPhase& attention = phase.attention;
    attention.call = call;
    attention.positions = tokens.positions.data<int32_t>();
    attention.table = tokens.rope_table.data<float>();
    attention.R = R;
    if (!operation.follows) {
      attention.q = tokens.q.data<__nv_bfloat16>();
      attention.k = tokens.k.data<__nv_bfloat16>();
      attention.v = tokens.v.data<__nv_bfloat16>();
    }
    attention.k_cache = k_cache.data<__nv_bfloat16>();
    attention.v_cache = v_cache.data<__nv_bfloat16>();
    attention.o = o.data<__nv_bfloat16>();
    const int most_writers = kProgramWarps / (operation.head_width / 64);
    const int warp_bytes = std::max(heads * 64 * 4, 2048);
    attention.writers =
        std::clamp(kAttentionBytes / (warp_bytes * (operation.head_width / 64)), 2, most_writers);
    attention.most_blocks =
        std::clamp(RowExchange::kPartWords / (call.H * (call.D + 2)), 1, kMostHeadBlocks);
    return operation;
  });
}

void RowProgram::State::drop() {
  planner.release();
  results.clear();
  kept = {};
}

void RowProgram::State::flush() {
  if (planner.operations().empty()) {
    return;
  }
  const RowProgramPlan plan = planner.plan();
  std::vector<RowOperation> all = planner.release();
  drop();
  RowProgramArgs program{};
  program.exchange = exchange;
  program.phases = static_cast<int>(all.size());
  program.stages = plan.stages;
  program.stage_bytes = plan.stage_bytes;
  program.sum_at = plan.sum_at;
  program.work_at = plan.work_at;
  RowHeads heads;
  for (size_t p = 0; p < all.size(); ++p) {
    RowPhase& phase = all[p].phase;
    for (const auto& [write, output] : all[p].writes) {
      if (write.sole_owner()) {  // nobody will read it
        drop_output(phase, output);
      }
    }
    if (phase.attends) {
      heads.wide = heads.wide || all[p].head_width > 64;
      heads.many_queries =
          heads.many_queries || phase.attention.call.H / phase.attention.call.G > kQueries / 2;
    }
    program.phase[p] = phase;
  }
  launch_row_program(context, heads, plan.blocks, plan.shared_bytes, program);
}

RowProgram::RowProgram(const Context& context) : state_(std::make_unique<State>(context)) {
  if (state_->usable()) {
    state_->make_exchange();
  }
}

RowProgram::~RowProgram() = default;

bool RowProgram::linears(const Tensor& x, std::span<const LinearTerm> terms) {
  return flush_unless_waiting(state_->linears(x, nullptr, terms, nullptr, nullptr));
}

bool RowProgram::normed_linears(const NormedInput& input, std::span<const LinearTerm> terms) {
  return flush_unless_waiting(state_->linears(input.x, &input, terms, nullptr, nullptr));
}

bool RowProgram::gated_linears(const Tensor& x, std::span<const LinearTerm> terms,
                               Activation activation, const Tensor& h) {
  return flush_unless_waiting(state_->linears(x, nullptr, terms, &activation, &h));
}

bool RowProgram::normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> terms,
                                      Activation activation, const Tensor& h) {
  return flush_unless_waiting(state_->linears(input.x, &input, terms, &activation, &h));
}

bool RowProgram::append_attention(const FreshTokens& tokens, const Tensor& k_cache,
                                  const Tensor& v_cache, const Tensor& spans,
                                  const AttentionArgs& args, const Tensor& o) {
  return flush_unless_waiting(state_->attention(tokens, k_cache, v_cache, spans, args, o));
}

bool RowProgram::flush_unless_waiting(bool taken) {
  if (taken && !state_->waits) {
    flush();
  }
  return taken;
}

void RowProgram::flush() {
  state_->flush();
}

RowProgram::Waiting::Waiting(RowProgram& program) : program_(program) {
  program_.flush();
  program_.state_->waits = true;
}

RowProgram::Waiting::~Waiting() {
  program_.state_->waits = false;
  program_.state_->drop();
}

}  // namespace wick::cuda
