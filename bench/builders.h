// The cases that the lists of both devices are made of, by their sizes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/case.h"

namespace wick::bench {

// ",dtype=bf16"; nothing for f32.
std::string dtype_suffix(DType dtype);
// The largest error that a result stored in the type may have.
double error_limit(DType dtype);

// T rows of width d through a square layer with `adapters` adapters of rank r, one row after the
// other using the next. The weight has the type, and so have activations, as far as the back end
// has them in it.
struct LoraSizes {
  int64_t T, d, r;
  int64_t adapters = 1;
  DType dtype = DType::f32;
};
Case delta_case(const LoraSizes& sizes);
Case linear_case(const LoraSizes& sizes);

struct StepSizes {
  int64_t B, T, d, r;
};
Case step_case(const StepSizes& sizes, bool optimizer);
Case adamw_case(int64_t n);

struct GemmSizes {
  int64_t T, N, K;
  DType activations = DType::f32;
};
// A frozen layer alone, its weight in bf16.
Case gemm_case(const GemmSizes& sizes);

// B sequences of T tokens laid end to end, causal, H heads of D over G heads of keys.
struct AttentionSizes {
  int64_t B, T, H, G, D;
  DType dtype = DType::bf16;
};
// Forward alone, or forward and backward.
Case attention_case(const AttentionSizes& sizes, bool gradients);

struct KvSizes {
  int64_t layers, G, D, P;
  DType dtype = DType::f32;
};
Case kv_append_case(const KvSizes& sizes);
// One token from V logits in one of the ways of `sampling_modes()`.
struct SamplingMode {
  std::string name;  // "mode=top_k,k=50"
  SampleArgs args;
};
std::vector<SamplingMode> sampling_modes();
Case sample_case(int64_t V, const SamplingMode& mode);

std::vector<Case> gpu_model_cases();

// Kernels alone as a case: awaited, and proved by `error` after a call.
PreparedCase awaited(Backend& be, const std::function<void()>& work,
                     const std::function<double()>& error);
// The same work in a replayed graph (see Recorder), its time that of one of many in a row: what a
// kernel costs inside a training step or a token.
Case in_graph(const Case& c);

}  // namespace wick::bench
