// Collects the operations of a row, shares their work out to the blocks, and launches them.
#include "wick/backend/cuda/row_program.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "wick/backend/cuda/attention_decode_warp.cuh"
#include "wick/backend/cuda/lora_adapters.cuh"
#include "wick/backend/cuda/row_program_launch.h"

namespace wick::cuda {
namespace {

constexpr int kMostRank = 64;
constexpr int kShrinkColumns = 640;  // kPieceColumns of row_shrink.cuh
// A tile that is no larger comes whole, others in pieces that are no larger than kPieceBytes.
constexpr int64_t kWholeTileBytes = 32 * 1024;
constexpr int64_t kPieceBytes = 20 * 1024;
// Where a multiprocessor has this much of a phase's weights, they are read as fast as they come.
constexpr int64_t kManyBytes = 160 * 1024;
// Else a block leaves some of its multiprocessor's memory to the first cache.
constexpr int64_t kSharedBytesOfFew = 195 * 1024;
constexpr int kPaceBytes = 14;  // that a block asks for in a clock otherwise
constexpr int kLeastStages = 4;
constexpr int kAttentionBytes = 32 * 1024;  // of shared memory, for the sums of a head's warps
constexpr int kMostHeadBlocks = 16;

// How a program uses its blocks.
struct Plan {
  int blocks = 0;
  int stages = 0, stage_bytes = 0;
  int sum_at = 0, work_at = 0;
  size_t shared_bytes = 0;
};

bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& tensor) { return static_cast<char*>(tensor.address()); };
  const auto end = [&](const Tensor& tensor) { return begin(tensor) + tensor.bytes(); };
  return begin(a) < end(b) && begin(b) < end(a);
}

bool same(const Tensor& a, const Tensor& b) {
  return a && b && a.address() == b.address() && a.bytes() == b.bytes() && a.dtype() == b.dtype();
}

// An operation that waits. It holds what it reads from memory and what it writes, so that nothing
// else is put there before it has run.
struct Operation {
  RowPhase phase{};
  std::vector<Tensor> reads;                   // of memory; without weights
  std::vector<std::pair<Tensor, int>> writes;  // and which of its outputs that is; results first
  bool follows = false;                        // its row is the result of the one before
  int64_t pairs = 0;                           // channels, halved: no more blocks than that
  int64_t weight_bytes = 0;
  int head_width = 0;  // of attention: 64 or 128
};

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

// Each term's blocks, all of them together, in proportion to its channels.
void share_out(int blocks, LinearsPhase& phase) {
  const int terms = phase.gated ? 1 : phase.terms;
  int64_t pairs = 0;
  for (int i = 0; i < terms; ++i) {
    pairs += phase.term[i].channels / 2;
  }
  int64_t of_block = ceil_div(pairs, blocks);
  const auto blocks_of = [&](const RowTerm& term) { return ceil_div(term.channels / 2, of_block); };
  const auto needed = [&] {
    int64_t sum = 0;
    for (int i = 0; i < terms; ++i) {
      sum += blocks_of(phase.term[i]);
    }
    return sum;
  };
  while (needed() > blocks && of_block < pairs) {
    ++of_block;
  }
  int64_t spare = blocks - needed();
  int first = 0;
  int before = 0;
  phase.channels = 0;
  for (int i = 0; i < terms; ++i) {
    RowTerm& term = phase.term[i];
    const int64_t more = std::clamp<int64_t>(spare, 0, term.channels / 2 - blocks_of(term));
    spare -= more;
    term.first_block = first;
    term.blocks = static_cast<int>(blocks_of(term) + more);
    first += term.blocks;
    term.pairs_of_block = term.channels / 2 / term.blocks;
    term.spare_pairs = term.channels / 2 % term.blocks;
    term.before = before;
    before += term.channels;
    phase.channels =
        std::max(phase.channels, 2 * (term.pairs_of_block + (term.spare_pairs > 0 ? 1 : 0)));
  }
}

int aligned(int bytes) {
  return (bytes + 15) / 16 * 16;
}

// Tiles, the low-rank tasks, and the phase's part of shared memory. Of that `x_bytes` are for rows
// of all phases: a thread that is ahead writes there while others still end the phase before.
void lay_out(int x_bytes, bool many, LinearsPhase& phase) {
  const int terms = phase.gated ? 2 : 1;
  const int64_t least = ceil_div(phase.channels, kTileRows / terms);
  const auto run_bytes_of = [&](int64_t tiles) {
    return 2 * terms * ceil_div(phase.channels, tiles) * kRunColumns;
  };
  // Whole tiles in an even number, for the two groups of warps.
  int64_t tiles = least + (least > 1 ? least % 2 : 0);
  if (phase.in / kRunColumns * run_bytes_of(tiles) > kWholeTileBytes) {
    tiles = least;
  }
  phase.tile_channels = static_cast<int>(ceil_div(phase.channels, tiles));
  phase.tile_reciprocal = ((1 << 16) + phase.tile_channels - 1) / phase.tile_channels;
  const int64_t run_bytes = run_bytes_of(tiles);
  const int64_t all_runs = phase.in / kRunColumns;
  phase.columns = phase.in;
  if (all_runs * run_bytes > kWholeTileBytes) {
    // Rows of an odd number of runs lie half of all banks apart.
    int64_t runs = ceil_div(all_runs, ceil_div(all_runs * run_bytes, kPieceBytes)) | 1;
    runs -= runs > 1 && runs * run_bytes > kPieceBytes ? 2 : 0;
    phase.columns = static_cast<int>(runs * kRunColumns);
  }
  phase.pieces = static_cast<int>(ceil_div(phase.in, phase.columns));
  phase.row_bytes = 2 * phase.columns;
  phase.split = phase.pieces == 1 ? kGroupWarps : kProgramWarps;
  phase.pace = many ? 0 : phase.row_bytes / kPaceBytes;
  phase.shrink_pieces = static_cast<int>(ceil_div(phase.in, kShrinkColumns));
  phase.tasks = 0;
  phase.width = 0;
  for (int i = 0; i < phase.terms; ++i) {
    RowTerm& term = phase.term[i];
    term.first_task = phase.tasks;
    phase.tasks += term.rank * phase.shrink_pieces;
    phase.width = std::max(phase.width, (term.rank + 15) / 16 * 16);
  }
  RowWork& work = phase.work;
  work.x = 0;
  work.low = work.x + x_bytes;
  work.posted = work.low + aligned(4 * terms * phase.width);
  work.parts = work.posted + aligned(4 * phase.width * phase.shrink_pieces);
  work.end = work.parts + 4 * static_cast<int>(tiles) * kTileRows * phase.split;
}

int stage_bytes(const LinearsPhase& phase) {
  return (phase.gated ? 2 : 1) * phase.tile_channels * phase.row_bytes;
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
  explicit State(const Context& of_backend) : context(of_backend) {}

  const Context& context;
  RowExchange exchange;
  struct Free {
    void operator()(void* address) const { cudaFree(address); }
  };
  std::unique_ptr<void, Free> memory;
  bool waits = false;
  std::vector<Operation> operations;
  Tensor kept;  // the row that the last norm is of

  bool usable() const { return context.compute_capability >= 90; }
  void make_exchange();
  bool linears(const Tensor& x, const NormedInput* norm, std::span<const LinearTerm> terms,
               const Activation* activation, const Tensor* h);
  bool attention(const FreshTokens& tokens, const Tensor& k_cache, const Tensor& v_cache,
                 const Tensor& spans, const AttentionArgs& args, const Tensor& o);
  // Whether the last operation's results, in their order and nothing else, are `tensors`.
  bool posts(std::initializer_list<const Tensor*> tensors) const;
  bool reads_results(const Operation& next) const;
  // `build` makes the operation from what waits now. False: there is no room for it even alone.
  template <class Build>
  bool add(const Build& build);
  // Shares the work of `all` out and tells it the phases; no value where memory does not suffice.
  std::optional<Plan> plan(std::span<Operation> all) const;
  void flush();
  void drop();

 private:
  Operation linears_of(const Tensor& x, const NormedInput* norm, std::span<const LinearTerm> terms,
                       const Activation* activation, const Tensor* h) const;
  void read_row(const Tensor& x, const NormedInput* norm, Operation& operation) const;
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
  if (operations.empty()) {
    return false;
  }
  const Operation& last = operations.back();
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

bool RowProgram::State::reads_results(const Operation& next) const {
  for (const Tensor& read : next.reads) {
    for (const Operation& operation : operations) {
      for (const auto& [write, output] : operation.writes) {
        if (overlap(read, write)) {
          return true;
        }
      }
    }
  }
  return false;
}

Operation RowProgram::State::linears_of(const Tensor& x, const NormedInput* norm,
                                        std::span<const LinearTerm> terms,
                                        const Activation* activation, const Tensor* h) const {
  Operation operation;
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
                                 Operation& operation) const {
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
  if (!operations.empty()) {
    Operation next = build();
    if (next.follows && operations.size() < kMostRowPhases && !reads_results(next)) {
      std::vector<Operation> all = operations;
      all.push_back(next);
      if (plan(all)) {
        operations.back().phase.posts = true;
        operations.push_back(std::move(next));
        return true;
      }
    }
    flush();
  }
  std::vector<Operation> alone = {build()};
  if (!plan(alone)) {
    return false;
  }
  operations = std::move(alone);
  return true;
}

std::optional<Plan> RowProgram::State::plan(std::span<Operation> all) const {
  Plan plan;
  int64_t blocks = context.multiprocessors;
  int key_heads = 1;
  int head_width = 0;
  int x_bytes = 0;
  for (const Operation& operation : all) {
    if (operation.phase.attends) {
      key_heads = std::max(key_heads, operation.phase.attention.call.G);
      if (head_width != 0 && head_width != operation.head_width) {
        return std::nullopt;
      }
      head_width = operation.head_width;
    } else {
      blocks = std::min(blocks, operation.pairs);
      x_bytes = std::max(x_bytes, aligned(2 * operation.phase.linears.in));
    }
  }
  if (blocks < key_heads) {
    return std::nullopt;
  }
  plan.blocks = static_cast<int>(blocks);
  int work = 0;
  int row = 0;
  int places = 0;  // of the ring, that the operations could use
  auto shared_bytes = static_cast<int64_t>(context.shared_bytes);
  const int64_t most_bytes = shared_bytes;
  shared_bytes = std::min(shared_bytes, kSharedBytesOfFew);
  for (Operation& operation : all) {
    if (operation.phase.attends) {
      AttentionPhase& phase = operation.phase.attention;
      phase.most_blocks = std::min(phase.most_blocks, plan.blocks / phase.call.G);
      work = std::max(
          work, attention_work_bytes(head_width > 64, phase.writers, phase.call.H / phase.call.G));
      continue;
    }
    LinearsPhase& phase = operation.phase.linears;
    share_out(plan.blocks, phase);
    const bool many = operation.weight_bytes > kManyBytes * context.multiprocessors;
    lay_out(x_bytes, many, phase);
    shared_bytes = many ? most_bytes : shared_bytes;
    if (phase.tasks > RowExchange::kSumWords || phase.channels > kMostBlockChannels - kTileRows) {
      return std::nullopt;
    }
    work = std::max(work, phase.work.end);
    row = std::max(row, phase.norms ? 2 * phase.in : 0);
    plan.stage_bytes = std::max(plan.stage_bytes, stage_bytes(phase));
    places += static_cast<int>(ceil_div(phase.channels, phase.tile_channels)) * phase.pieces;
  }
  const int64_t own = shared_bytes - row_shared_bytes() - aligned(row) - aligned(work);
  plan.stage_bytes = ceil_div(plan.stage_bytes, 128) * 128;
  if (plan.stage_bytes > 0) {
    plan.stages =
        static_cast<int>(std::min<int64_t>({kMostRowStages, places, own / plan.stage_bytes}));
  }
  // An even number: two pieces that go through a stage one after the other are then the same
  // group's, or of two phases, so that nobody waits for a round of a stage before the one before
  // has come, which the parity of its barrier would not tell from the round before that.
  plan.stages -= plan.stages > 1 ? plan.stages % 2 : 0;
  if (own < 0 || (places > 0 && plan.stages < std::min(kLeastStages, places / 2 * 2)) ||
      (places > 1 && plan.stages < 2)) {
    return std::nullopt;
  }
  plan.sum_at = plan.stages * plan.stage_bytes;
  plan.work_at = plan.sum_at + aligned(row);
  plan.shared_bytes = static_cast<size_t>(plan.work_at) + aligned(work);
  return plan;
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
    Operation operation;
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
  operations.clear();
  kept = {};
}

void RowProgram::State::flush() {
  if (operations.empty()) {
    return;
  }
  std::vector<Operation> all = std::move(operations);
  drop();
  const std::optional<Plan> planned = plan(all);
  RowProgramArgs program{};
  program.exchange = exchange;
  program.phases = static_cast<int>(all.size());
  program.stages = planned->stages;
  program.stage_bytes = planned->stage_bytes;
  program.sum_at = planned->sum_at;
  program.work_at = planned->work_at;
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
  launch_row_program(context, heads, planned->blocks, planned->shared_bytes, program);
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
