// All products of one input in one call forward; backward a layer at a time.
#include "wick/ops/lora_linear.h"

#include "wick/base/error.h"
#include "wick/core/shape_format.h"
#include "wick/ops/activation.h"
#include "wick/ops/linear.h"

namespace wick {
namespace {

void check_adapter(const Parameter& weight, const LoraTerm& lora) {
  const Shape& w = weight.value.shape();
  const Shape& a = lora.a.value.shape();
  const Shape& b = lora.b.value.shape();
  check(a.rank() == 2 && a[1] == w[1], "lora: A {} does not fit weight {} {}", a, weight.name, w);
  check(b.rank() == 2 && b[0] == w[0] && b[1] == a[0],
        "lora: B {} does not fit A {} and weight {} {}", b, a, weight.name, w);
}

LoraFactors factors_of(const LoraTerm& lora) {
  return {lora.a.value, lora.b.value, lora.scaling};
}

class LoraGradients {
 public:
  LoraGradients(Backend& backend, const Var& x, Tensor s, const LoraTerm& lora,
                LinearGradients base)
      : backend_(backend),
        input_(x.keep()),
        s_(std::move(s)),
        factors_(factors_of(lora)),
        da_(lora.a.grad),
        db_(lora.b.grad),
        dropout_(lora.dropout),
        base_(std::move(base)) {}

  void operator()(const Tensor& dy) const {
    const Tensor ds = backend_.allocate(s_.shape(), s_.dtype());
    const Tensor da = da_ ? da_ : backend_.allocate(factors_.a.shape(), DType::f32);
    const Tensor db = db_ ? db_ : backend_.allocate(factors_.b.shape(), DType::f32);
    const Tensor& input = input_.get();
    if (dropout_.probability == 0.0F) {
      const Tape::Sink dx = base_.all_but_input(dy);
      if (dx.tensor) {
        backend_.lora_linear_backward({input, s_, dy, base_.weight(), factors_}, dx.accumulate, ds,
                                      da, db, dx.tensor);
      } else {
        backend_.lora_backward(input, s_, dy, factors_, ds, da, db, dx.tensor);
      }
      return;
    }
    const Tensor dx = base_(dy);
    const Tensor dropped = backend_.allocate(input.shape(), input.dtype());
    backend_.dropout(input, dropout_, dropped);
    Tensor d_dropped;
    if (dx) {
      d_dropped = backend_.allocate(dropped.shape(), dropped.dtype());
      backend_.fill(0.0F, d_dropped);
    }
    backend_.lora_backward(dropped, s_, dy, factors_, ds, da, db, d_dropped);
    if (dx) {
      backend_.dropout(d_dropped, dropout_, d_dropped);
      backend_.add(dx, d_dropped, dx);
    }
  }

 private:
  Backend& backend_;
  Kept input_;
  Tensor s_;
  LoraFactors factors_;
  Tensor da_;  // empty: frozen
  Tensor db_;
  DropoutArgs dropout_;
  LinearGradients base_;
};

bool drops(const LinearInputs& layer) {
  return layer.lora && layer.lora->dropout.probability > 0.0F;
}

// What `linears` is told; `factors` outlives it.
std::vector<LinearTerm> terms_of(Backend& backend, const Tensor& x,
                                 std::span<const LinearInputs> layers,
                                 std::vector<LoraFactors>& factors) {
  const int64_t T = x.rows();
  std::vector<LinearTerm> terms;
  factors.resize(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const LinearInputs& layer = layers[i];
    check_linear(x, *layer.weight, layer.bias);
    LinearTerm term;
    term.weight = layer.weight->value;
    term.bias = layer.bias == nullptr ? Tensor() : layer.bias->value;
    term.y = backend.allocate({T, term.weight.dim(0)}, x.dtype());
    if (layer.lora) {
      check_adapter(*layer.weight, *layer.lora);
      factors[i] = factors_of(*layer.lora);
      term.s = backend.allocate({T, factors[i].a.dim(0)}, x.dtype());
      if (!drops(layer)) {
        term.adapters = {&factors[i], 1};
      }
    }
    terms.push_back(std::move(term));
  }
  return terms;
}

// The outputs, and what each layer keeps of its adapter.
std::vector<LinearTerm> run_forward(Backend& backend, const Tensor& x,
                                    std::span<const LinearInputs> layers) {
  std::vector<LoraFactors> factors;
  std::vector<LinearTerm> terms = terms_of(backend, x, layers, factors);
  backend.linears(x, terms);
  for (size_t i = 0; i < layers.size(); ++i) {
    terms[i].adapters = {};
    if (drops(layers[i])) {
      const Tensor dropped = backend.allocate(x.shape(), x.dtype());
      backend.dropout(x, layers[i].lora->dropout, dropped);
      backend.lora_forward(dropped, {&factors[i], 1}, Tensor(), terms[i].s, terms[i].y);
    }
  }
  return terms;
}

void check_norm(const NormedInput& input, std::span<const LinearInputs> layers) {
  check(input.weight.elements() == input.a.columns(),
        "rms_norm: a weight of {} values, input {} has {} columns", input.weight.elements(),
        input.a.shape(), input.a.columns());
  for (const LinearInputs& layer : layers) {
    check(!drops(layer), "linear layers of a norm: dropout needs the norm itself");
  }
}

bool any_trainable(const LinearInputs& layer) {
  return layer.weight->trainable() || (layer.bias != nullptr && layer.bias->trainable()) ||
         (layer.lora && (layer.lora->a.trainable() || layer.lora->b.trainable()));
}

Tensor allocate_gated(Backend& backend, std::span<const LinearTerm> g_and_u) {
  const Tensor& g = g_and_u[0].y;
  check(g.shape() == g_and_u[1].y.shape(), "gate: shapes differ: {} and {}", g.shape(),
        g_and_u[1].y.shape());
  return backend.allocate(g.shape(), g.dtype());
}

}  // namespace

std::vector<Var> linear_group(Backend& backend, Tape* tape, const Var& x,
                              std::span<const LinearInputs> layers) {
  std::vector<LinearTerm> terms = run_forward(backend, x.value, layers);
  std::vector<Var> outputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    const LinearInputs& layer = layers[i];
    LinearTerm& term = terms[i];
    if (tape == nullptr || !(any_trainable(layer) || x.needs_gradient())) {
      outputs.push_back({std::move(term.y)});
      continue;
    }
    LinearGradients base(backend, tape, x, *layer.weight, layer.bias);
    Tape::Step step;
    if (layer.lora) {
      step = [gradients = LoraGradients(backend, x, std::move(term.s), *layer.lora,
                                        std::move(base))](const Tensor& dy) { gradients(dy); };
    } else {
      step = [gradients = std::move(base)](const Tensor& dy) { gradients(dy); };
    }
    outputs.push_back(tape->record(std::move(term.y), std::move(step)));
  }
  return outputs;
}

Var gated_group(Backend& backend, const Var& x, std::span<const LinearInputs> g_and_u,
                Activation activation) {
  if (drops(g_and_u[0]) || drops(g_and_u[1])) {
    const std::vector<Var> both = linear_group(backend, nullptr, x, g_and_u);
    return gate(backend, nullptr, both[0], both[1], activation);
  }
  std::vector<LoraFactors> factors;
  const std::vector<LinearTerm> terms = terms_of(backend, x.value, g_and_u, factors);
  Tensor h = allocate_gated(backend, terms);
  backend.gated_linears(x.value, terms, activation, h);
  return {std::move(h)};
}

std::vector<Var> normed_group(Backend& backend, const NormedInput& input,
                              std::span<const LinearInputs> layers) {
  check_norm(input, layers);
  std::vector<LoraFactors> factors;
  std::vector<LinearTerm> terms = terms_of(backend, input.x, layers, factors);
  backend.normed_linears(input, terms);
  std::vector<Var> outputs;
  for (LinearTerm& term : terms) {
    outputs.push_back({std::move(term.y)});
  }
  return outputs;
}

Var normed_gated_group(Backend& backend, const NormedInput& input,
                       std::span<const LinearInputs> g_and_u, Activation activation) {
  check_norm(input, g_and_u);
  std::vector<LoraFactors> factors;
  const std::vector<LinearTerm> terms = terms_of(backend, input.x, g_and_u, factors);
  Tensor h = allocate_gated(backend, terms);
  backend.normed_gated_linears(input, terms, activation, h);
  return {std::move(h)};
}

Var lora_linear(Backend& backend, Tape* tape, const Var& x, const Parameter& weight,
                const Parameter* bias, const LoraTerm& lora) {
  return linear_group(backend, tape, x, {{{&weight, bias, lora}}}).front();
}

}  // namespace wick
