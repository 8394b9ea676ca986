// Dense products on CUDA; formulas and shapes in core/backend.h.
//
// cuBLASLt multiplies. For each form, shape and set of types it is asked once which algorithm to
// use, and its first proposal is taken; proposals that add parts of a sum in an order that may vary
// are excluded, so the same product gives the same bits on every run.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/store_marks.h"
#include "wick/core/kernel_args.h"

namespace wick::cuda {

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c);

// c[m] += bias for each row m; bias of any weight type.
void add_bias(const Context& context, const Tensor& bias, const Tensor& c);

// What decides the choice of an algorithm.
struct ProductKind {
  MatmulForm form;
  DType inputs, output;
  bool bias, accumulate;
  uint8_t a_alignment, b_alignment, c_alignment;  // bytes, up to 16
  int64_t M, N, K;

  auto fields() const {
    return std::tie(form, inputs, output, bias, accumulate, a_alignment, b_alignment, c_alignment,
                    M, N, K);
  }
  bool operator<(const ProductKind& other) const { return fields() < other.fields(); }
};

// A product as cuBLASLt wants it described.
struct MatmulPlan {
  struct Drop {
    void operator()(cublasLtMatmulDescOpaque_t* product) const {
      cublasLtMatmulDescDestroy(product);
    }
    void operator()(cublasLtMatrixLayoutOpaque_t* layout) const {
      cublasLtMatrixLayoutDestroy(layout);
    }
  };
  using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Drop>;

  std::unique_ptr<cublasLtMatmulDescOpaque_t, Drop> product;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
};

// The plans made so far, and the memory that their algorithms work in.
class MatmulPlans {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  explicit MatmulPlans(const Context& context);

  // Null where cuBLASLt has no algorithm for it.
  const MatmulPlan* plan_for(const ProductKind& kind);
  cublasLtHandle_t handle() const { return handle_.get(); }
  void* workspace() const { return workspace_.as<void>(); }
  const StoreMarks& marks() const { return marks_; }

 private:
  struct DropHandle {
    void operator()(cublasLtContext* handle) const { cublasLtDestroy(handle); }
  };

  std::unique_ptr<MatmulPlan> make(const ProductKind& kind) const;

  std::unique_ptr<cublasLtContext, DropHandle> handle_;
  Scratch workspace_;
  StoreMarks marks_;
  std::map<ProductKind, std::unique_ptr<MatmulPlan>> plans_;
};

}  // namespace wick::cuda
