// THE SEAM: what a back end (CPU, CUDA, Metal) must provide, and all that the floors above know of
// a device.
//
// Memory first, then the kernels. Kernels work on shaped, contiguous views of this back end's own
// memory; outputs come last. They do not allocate tensors, check shapes or throw: ops do that once,
// before any kernel. A back end may keep scratch of its own. Work is in order; results may be read
// after `download` or `synchronize`.
//
// Activations and their gradients are f32 or, where `activation_type` says so, bf16: all those of
// one call have one type. Weights are f32, bf16 or f16; adapters (but see `adapter_type`),
// gradients of parameters, losses and the statistics of norms and softmaxes are f32; arithmetic is
// at least f32, but for the operands of products where `matmul_precision` says so. The result of a
// kernel is the same bits whatever the number of threads.
//
// Shape letters: T tokens (rows), C channels, N outputs, H query heads, G key/value heads, D head
// size, R rank, V vocabulary, S sequences, P positions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "wick/core/kernel_args.h"
#include "wick/core/tensor.h"

namespace wick {

using In = const Tensor&;
using Out = const Tensor&;  // a Tensor is a handle, so what it names can be written

// Work that is done again and again on the same memory. A back end that can record it does so at a
// call of its choice and replays it at later ones, without the cost of asking for each kernel.
class Recorder {
 public:
  virtual ~Recorder() = default;
  // Does `work`. All work of one key must ask for the same kernels, on the same tensors from
  // outside the work, with the same arguments; tensors that it allocates must be gone when it
  // returns, and it must not upload, download or synchronise.
  virtual void run(uint64_t key, const std::function<void()>& work) = 0;
  // False where `run` does the work anew each time: then nothing is gained by equal shapes.
  virtual bool replays() const = 0;
};

// A small download that is begun after one piece of work and taken after more was asked for, so
// that the device need not stand still while the host reads. One at a time an object.
class Readback {
 public:
  virtual ~Readback() = default;
  // Of what the tensor holds when all work asked for so far is done.
  virtual void begin(In from) = 0;
  // Waits for what was begun last, and for no later work.
  virtual void take(std::span<std::byte> host) = 0;
  // False where `begin` waits already: then nothing is gained by asking for more work first.
  virtual bool runs_behind() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "cpu", "cuda", "metal"
  // Of the activations of a model whose weights have the given type: f32, or bf16.
  virtual DType activation_type(DType /*weights*/) const { return DType::f32; }
  // Of the products with weights of the given type.
  virtual MatmulPrecision matmul_precision(DType /*weights*/) const {
    return MatmulPrecision::highest;
  }
  // In which products take weights of the stored type as they are: another one where each product
  // would have to convert them.
  virtual DType weight_type(DType stored) const { return stored; }
  // Of the factors of an adapter that is not trained, on weights of the given type: f32, or bf16
  // where products round their operands to that anyway. Forward products alone take such factors.
  virtual DType adapter_type(DType /*weights*/) const { return DType::f32; }
  virtual std::unique_ptr<Recorder> make_recorder();

  // ---- memory
  // ------------------------------------------------------------------------------------------------------
  // Uninitialised. Throws Error (how much was asked for, how much is free) when there is not
  // enough.
  virtual Tensor allocate(const Shape& shape, DType dtype) = 0;
  // A tensor with the contents of host memory that `owner` keeps alive: a view of it where the
  // device can read it in place (then it must not be written), else a copy.
  virtual Tensor adopt(std::span<const std::byte> host, std::shared_ptr<const void> owner,
                       const Shape& shape, DType dtype) = 0;
  virtual void upload(std::span<const std::byte> host, Out to) = 0;
  virtual void download(In from, std::span<std::byte> host) = 0;
  // For tensors of at most `bytes`. It must not outlive the back end.
  virtual std::unique_ptr<Readback> make_readback(size_t bytes);
  virtual void copy(In from, Out to) = 0;  // same dtype and number of elements
  virtual void synchronize() = 0;
  virtual MemoryUse memory() const = 0;  // of what `allocate` gave
  virtual void reset_peak_memory() = 0;

  // ---- products
  // ----------------------------------------------------------------------------------------------------
  // c[M,N] = op(a) op(b) (+ c) (+ bias); nt: a[M,K] b[N,K]; nn: a[M,K] b[K,N]; tn: a[K,M] b[K,N].
  // a and c are activations, and c may be f32 where a is bf16; b is an activation or a weight.
  virtual void matmul(In a, In b, const MatmulArgs& args, Out c) = 0;
  // Grouped LoRA. For row t with adapter g = row_adapter[t] (i32 [T]; empty tensor: all rows use
  // adapter 0; -1: none): s[t,:R_g] = x[t] A_g^T;  y[t] += scaling_g s[t,:R_g] B_g^T.   x [T,in], s
  // [T,R_max], y [T,out]
  virtual void lora_forward(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                            Out y) = 0;
  // What lora_forward adds, alone: y[t] = scaling_g s[t,:R_g] B_g^T, and 0 where there is no
  // adapter. Composed of it and `fill` unless a back end fuses them.
  virtual void lora_delta(In x, std::span<const LoraFactors> adapters, In row_adapter, Out s,
                          Out y);
  // One adapter for all rows: ds = scaling dy B; db += scaling dy^T s; da += ds^T x; and, unless dx
  // is empty, dx += ds A.   ds [T,R] is scratch; s is lora_forward's.
  virtual void lora_backward(In x, In s, In dy, const LoraFactors& adapter, Out ds, Out da, Out db,
                             Out dx) = 0;
  // The same of a frozen layer and its adapter: dx = dy W first, or dx += dy W where `accumulate`.
  // Composed of `matmul` and `lora_backward` unless a back end fuses them.
  virtual void lora_linear_backward(const LoraLinearInputs& inputs, bool accumulate, Out ds, Out da,
                                    Out db, Out dx);
  // Linear layers of one input, each y = x W^T (+ bias), then lora_forward: what attention's q, k,
  // v or an MLP's gate and up are. Composed of `matmul` and `lora_forward` unless a back end fuses
  // them.
  virtual void linears(In x, std::span<const LinearTerm> terms);
  // h = act(g) * u [T,F] of the two outputs of `linears`, which may be left unwritten. Composed
  // unless a back end fuses them.
  virtual void gated_linears(In x, std::span<const LinearTerm> g_and_u, Activation activation,
                             Out h);
  // Both of the two above, where x is a norm that comes first. Composed unless a back end fuses
  // them.
  virtual void normed_linears(const NormedInput& input, std::span<const LinearTerm> terms);
  virtual void normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> g_and_u,
                                    Activation activation, Out h);
  // out[N] += sum over rows of x[T,N] (bias gradients).
  virtual void add_column_sums(In x, Out out) = 0;

  // ---- attention
  // ---------------------------------------------------------------------------------------------------
  // o = softmax(scale q k^T + mask) v for each run of `spans` (see AttentionArgs), head h using key
  // head h / (H / G). q, o [Tq,H,D]; k, v [Tk,G,D]; lse [Tq,H] f32 is the log of the softmax's
  // denominator (empty tensor: not wanted). The runs lie in order and cover all queries; runs
  // without queries may follow.
  virtual void attention(In q, In k, In v, In spans, const AttentionArgs& args, Out o, Out lse) = 0;
  // Overwrites dq, dk, dv. The spans must not share keys.
  virtual void attention_backward(In q, In k, In v, In o, In lse, In d_o, In spans,
                                  const AttentionArgs& args, Out dq, Out dk, Out dv) = 0;
  // cache[slots[t]] = x[t];  x [T,G,D], slots i32 [T], cache [P,G,D].
  virtual void kv_append(In x, In slots, Out cache) = 0;
  // Rotary embedding of the first R of D channels, half-split pairs (i, i + R/2):
  // y_i = x_i cos - x_{i+R/2} sin,  y_{i+R/2} = x_{i+R/2} cos + x_i sin;  inverse: sin negated
  // (also the gradient). x, y [T,H,D], may be one tensor; positions i32 [T]; table f32 [P,R] = (cos
  // of R/2 angles | sin of R/2 angles).
  virtual void rope(In x, In positions, In table, RopeDirection direction, Out y) = 0;
  // rope of q [T,H,D] in place, and of k [T,G,D] into the rows positions[t] of k_cache, where those
  // of v go into v_cache unchanged. Composed of the two above unless a back end fuses them; k is
  // overwritten.
  virtual void rope_append(In positions, In table, Out q, Out k, In v, Out k_cache, Out v_cache);

  // rope_append, then attention of q over the caches. Composed unless a back end fuses them.
  virtual void append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache, In spans,
                                const AttentionArgs& args, Out o);

  // ---- row-wise
  // ----------------------------------------------------------------------------------------------------
  // y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps).  x, y [T,C]; weight [C]; rstd f32 [T]
  // (empty: not wanted).
  virtual void rms_norm(In x, In weight, float eps, Out y, Out rstd) = 0;
  // sum = a + b, y = rms_norm(sum).  sum may be a or b. Composed unless a back end fuses them.
  virtual void add_rms_norm(In a, In b, In weight, float eps, Out sum, Out y, Out rstd);
  // dx = rstd (w dy - x rstd^2 mean(w dy x)), or dx += if `accumulate`; dweight += sum_t dy x rstd
  // unless empty.
  virtual void rms_norm_backward(In x, In weight, In rstd, In dy, bool accumulate, Out dx,
                                 Out dweight) = 0;
  // y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps).  x, y [T,C];
  // weight, bias [C] (an empty bias is zero); mean_rstd f32 [T,2] = (mean, rstd) of each row
  // (empty: not wanted).
  virtual void layer_norm(In x, In weight, In bias, float eps, Out y, Out mean_rstd) = 0;
  // With n = (x - mean) rstd and g = w dy:  dx = rstd (g - mean(g) - n mean(g n)), or dx += if
  // `accumulate`; dweight += sum_t dy n and dbias += sum_t dy, each unless empty.
  virtual void layer_norm_backward(In x, In weight, In mean_rstd, In dy, bool accumulate, Out dx,
                                   Out dweight, Out dbias) = 0;
  // y[t] = e^x[t] / sum e^x[t] over each row, from the differences to its largest.  x, y [T,C], may
  // be one tensor.
  virtual void softmax(In x, Out y) = 0;
  // h = act(g) * u, all [T,F].
  virtual void gate(In g, In u, Activation activation, Out h) = 0;
  // dg = dh u act'(g); du = dh act(g). dg may be g, and du may be u.
  virtual void gate_backward(In g, In u, In dh, Activation activation, Out dg, Out du) = 0;
  virtual void add(In a, In b, Out y) = 0;    // y may be a or b
  virtual void fill(float value, Out y) = 0;  // f32 or an activation
  virtual void cast(In x, Out y) = 0;         // between f32, bf16 and f16, nearest even
  virtual void dropout(In x, const DropoutArgs& args,
                       Out y) = 0;  // y may be x; also its own gradient
  // y[t] = table[ids[t]];  ids i32 [T], table [V,C] of any weight dtype, y [T,C].
  virtual void gather_rows(In table, In ids, Out y) = 0;
  // table[ids[t]] += x[t], the sum in order of t: f32, or both activations.
  virtual void scatter_add_rows(In x, In ids, Out table) = 0;

  // ---- loss and optimiser
  // --------------------------------------------------------------------------------------------
  // losses[i] = log sum exp(logits[i]) - logits[i][targets[i]]; with a gradient_scale the logits
  // are replaced by gradient_scale (softmax - onehot). Where targets[i] < 0 the loss and the
  // gradient are 0.   logits [n,V] (overwritten), targets i32 [n], losses f32 [n].
  virtual void cross_entropy(In targets, const CrossEntropyArgs& args, Out logits, Out losses) = 0;
  // AdamW (Loshchilov and Hutter, 2019) over flat f32 arenas:
  // g = grad min(1, max_gradient_norm / (sqrt(square_sum) + 1e-6)), or grad if there is no maximum;
  // m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr (wd p + (m / (1-b1^t)) / (sqrt(v /
  // (1-b2^t)) + eps)).  Where square_sum is not finite, nothing changes.
  virtual void adamw(In grad, const AdamwArgs& args, Out p, Out m, Out v) = 0;
  // out[0] = sum of squares, f32 [1], accumulated in a fixed order.
  virtual void sum_squares(In x, Out out) = 0;

  // ---- sampling
  // ------------------------------------------------------------------------------------------------------
  // One token from logits [V] (overwritten): penalty, then temperature, then top-k, then top-p.  id
  // i32 [1].
  virtual void sample(const SampleArgs& args, Out logits, Out id) = 0;
};

}  // namespace wick
