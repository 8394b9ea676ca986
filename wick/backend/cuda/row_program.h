// Operations of one row of bf16 that are launched together (row_phase.cuh says why and how).
//
// Where work is recorded, operations of a single token wait here until another one comes, or the
// work ends: those that follow from each other go into one launch. Elsewhere each is launched at
// once. What they read from memory and write there is as if each had run by itself, but that an
// output is not written which nobody holds any more when they are launched.
#pragma once

#include <memory>
#include <span>

#include "wick/backend/cuda/context.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

class RowProgram {
 public:
  explicit RowProgram(const Context& context);
  ~RowProgram();
  RowProgram(const RowProgram&) = delete;
  RowProgram& operator=(const RowProgram&) = delete;

  // The operations of the seam (core/backend.h). False, and nothing done, where the device, types
  // or sizes are not for it.
  bool linears(const Tensor& x, std::span<const LinearTerm> terms);
  bool normed_linears(const NormedInput& input, std::span<const LinearTerm> terms);
  bool gated_linears(const Tensor& x, std::span<const LinearTerm> terms, Activation activation,
                     const Tensor& h);
  bool normed_gated_linears(const NormedInput& input, std::span<const LinearTerm> terms,
                            Activation activation, const Tensor& h);
  bool append_attention(const FreshTokens& tokens, const Tensor& k_cache, const Tensor& v_cache,
                        const Tensor& spans, const AttentionArgs& args, const Tensor& o);

  void flush();  // launches what waits

  // While this lives, operations wait for each other. What still waits at its end is dropped: an
  // error has come between.
  class Waiting {
   public:
    explicit Waiting(RowProgram& program);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    RowProgram& program_;
  };

 private:
  bool flush_unless_waiting(bool taken);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wick::cuda
