// Row-major products as the column-major ones of cuBLASLt: c^T = op(b)^T op(a)^T, where a row-major
// matrix is read as its transpose.
#include "wick/backend/cuda/matmul.h"

#include <algorithm>
#include <cassert>
#include <optional>
#include <span>

#include "wick/backend/cuda/lora.h"
#include "wick/backend/cuda/rowwise.h"
#include "wick/backend/cuda/temporary.h"
#include "wick/base/error.h"

namespace wick::cuda {

namespace {

// Shapes that come once only (ragged batches) would fill the memory with their plans.
constexpr size_t kMostPlans = 4096;

// In bytes. Whether a block of memory happens to be aligned to more must change no choice.
constexpr unsigned kFullAlignment = 16;

void check_lt(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]] {
    return;
  }
  check_cuda(cudaPeekAtLastError(), what);
  fail("cuda: {}: {}", what, cublasLtGetStatusString(status));
}

cudaDataType_t data_type(DType type) {
  return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

MatmulPlan::Layout layout_of(DType type, int64_t rows, int64_t columns) {
  // Row-major [rows, columns], so column-major [columns, rows].
  cublasLtMatrixLayout_t layout = nullptr;
  check_lt(cublasLtMatrixLayoutCreate(&layout, data_type(type), columns, rows, columns), "matmul");
  return MatmulPlan::Layout(layout);
}

template <class Value>
void set(const MatmulPlan& plan, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check_lt(cublasLtMatmulDescSetAttribute(plan.product.get(), attribute, &value, sizeof(value)),
           "matmul");
}

uint8_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | kFullAlignment;
  return static_cast<uint8_t>(bits & (~bits + 1));
}

class Preference {
 public:
  Preference() { check_lt(cublasLtMatmulPreferenceCreate(&preference_), "matmul"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <class Value>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
    check_lt(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)),
             "matmul");
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

struct Product {
  const Tensor &a, &b, &c;
  ProductKind kind;
};

// c = product (+ c) (+ bias), where a plan for it exists.
bool multiply(const Context& context, const Product& product, const void* bias) {
  const MatmulPlan* plan = context.plans->plan_for(product.kind);
  if (plan == nullptr) {
    return false;
  }
  if (product.kind.bias) {
    set(*plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  const float alpha = 1.0F;
  const float beta = product.kind.accumulate ? 1.0F : 0.0F;
  void* c = product.c.address();
  check_lt(cublasLtMatmul(context.plans->handle(), plan->product.get(), &alpha, product.b.address(),
                          plan->b.get(), product.a.address(), plan->a.get(), &beta, c,
                          plan->c.get(), c, plan->c.get(), &plan->algorithm,
                          context.plans->workspace(), MatmulPlans::kWorkspaceBytes, context.stream),
           "matmul");
  context.plans->marks().mark(context.stream, c, product.c.bytes());
  return true;
}

void multiply_and_add_bias(const Context& context, Product product, const Tensor* bias) {
  // The epilogue takes an aligned bias of c's type only, and not with every algorithm.
  product.kind.bias = bias != nullptr && bias->dtype() == product.c.dtype() &&
                      alignment_of(bias->address()) == kFullAlignment;
  if (product.kind.bias && multiply(context, product, bias->address())) {
    return;
  }
  product.kind.bias = false;
  check(multiply(context, product, nullptr),
        "matmul: cuBLASLt has no algorithm for {} x {} x {} of {}", product.kind.M, product.kind.N,
        product.kind.K, name_of(product.kind.inputs));
  if (bias != nullptr) {
    add_bias(context, *bias, product.c);
  }
}

// Sums of no terms: c is 0 (or stays), plus the bias.
void multiply_nothing(const Context& context, const MatmulArgs& args, const Tensor& c) {
  if (!args.accumulate) {
    check_cuda(cudaMemsetAsync(c.address(), 0, c.bytes(), context.stream), "matmul");
  }
  if (args.bias != nullptr) {
    add_bias(context, *args.bias, c);
  }
}

bool multiply_few_rows(const Context& context, const Tensor& a, const Tensor& b,
                       const MatmulArgs& args, const Tensor& c) {
  if (args.form != MatmulForm::nt || args.accumulate || c.rows() > kFewRows) {
    return false;
  }
  LinearTerm term;
  term.weight = b;
  term.bias = args.bias != nullptr ? *args.bias : Tensor();
  term.y = c;
  return linears_few_rows(context, a, std::span(&term, 1));
}

}  // namespace

MatmulPlans::MatmulPlans(const Context& context) : workspace_(context, kWorkspaceBytes) {
  cublasLtHandle_t handle = nullptr;
  check_lt(cublasLtCreate(&handle), "starting cuBLASLt");
  handle_.reset(handle);
  // Which product of the library reads what there is the library's own.
  marks_.mark(context.stream, workspace(), kWorkspaceBytes);
}

const MatmulPlan* MatmulPlans::plan_for(const ProductKind& kind) {
  const auto found = plans_.find(kind);
  if (found != plans_.end()) {
    return found->second.get();
  }
  if (plans_.size() >= kMostPlans) {
    plans_.clear();
  }
  return plans_.emplace(kind, make(kind)).first->second.get();
}

std::unique_ptr<MatmulPlan> MatmulPlans::make(const ProductKind& kind) const {
  const auto [M, N, K] = std::array{kind.M, kind.N, kind.K};
  auto plan = std::make_unique<MatmulPlan>();
  cublasLtMatmulDesc_t product = nullptr;
  check_lt(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul");
  plan->product.reset(product);
  set(*plan, CUBLASLT_MATMUL_DESC_TRANSA, kind.form == MatmulForm::nt ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(*plan, CUBLASLT_MATMUL_DESC_TRANSB, kind.form == MatmulForm::tn ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (kind.bias) {
    set(*plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(*plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(kind.output));
  }
  plan->a =
      kind.form == MatmulForm::tn ? layout_of(kind.inputs, K, M) : layout_of(kind.inputs, M, K);
  plan->b =
      kind.form == MatmulForm::nt ? layout_of(kind.inputs, N, K) : layout_of(kind.inputs, K, N);
  plan->c = layout_of(kind.output, M, N);

  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  // cuBLASLt's A is our b.
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{kind.b_alignment});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{kind.a_alignment});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{kind.c_alignment});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{kind.c_alignment});
  cublasLtMatmulHeuristicResult_t choice{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), product, plan->b.get(), plan->a.get(), plan->c.get(), plan->c.get(),
      preference.get(), 1, &choice, &found);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
    check_lt(status, "choosing an algorithm of matmul");
  }
  if (found == 0 || choice.state != CUBLAS_STATUS_SUCCESS) {
    return nullptr;
  }
  plan->algorithm = choice.algo;
  return plan;
}

void matmul(const Context& context, const Tensor& a, const Tensor& b, const MatmulArgs& args,
            const Tensor& c) {
  const int64_t K = args.form == MatmulForm::tn ? a.rows() : a.columns();
  if (c.elements() == 0) {
    return;
  }
  if (K == 0) {
    multiply_nothing(context, args, c);
    return;
  }
  if (multiply_few_rows(context, a, b, args, c)) {
    return;
  }
  std::optional<Temporary> converted;
  if (b.dtype() != a.dtype()) {
    converted.emplace(context, b.shape(), a.dtype());
    cast(context, b, converted->tensor());
  }
  const Tensor& factor = converted ? converted->tensor() : b;
  const ProductKind kind{args.form,
                         a.dtype(),
                         c.dtype(),
                         false,
                         args.accumulate,
                         alignment_of(a.address()),
                         alignment_of(factor.address()),
                         alignment_of(c.address()),
                         c.rows(),
                         c.columns(),
                         K};
  multiply_and_add_bias(context, {a, factor, c, kind}, args.bias);
}

}  // namespace wick::cuda
