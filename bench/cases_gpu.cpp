// What is timed on a GPU, and how kernels alone are timed there: awaited, and in a graph.
#include "bench/builders.h"

namespace wick::bench {

namespace {

constexpr int kRepeats = 100;  // in a graph: launching and awaiting it is a hundredth of the time

std::vector<Case> gpu_lora_cases() {
  std::vector<Case> cases;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t d : {512, 1024, 2048}) {
      cases.push_back(delta_case({64, d, 8, 1, dtype}));
    }
    for (const int64_t r : {4, 16, 32, 64}) {
      cases.push_back(delta_case({64, 1024, r, 1, dtype}));
    }
    for (const int64_t d : {512, 1024, 2048}) {
      cases.push_back(linear_case({64, d, 8, 1, dtype}));
    }
  }
  cases.push_back(linear_case({4096, 4096, 16, 1, DType::bf16}));
  // The hidden sizes of Qwen2.5-0.5B and 7B: one adapter for all rows, and one for each.
  for (const int64_t d : {896, 3584}) {
    for (const int64_t adapters : {1, 32}) {
      cases.push_back(linear_case({32, d, 16, adapters, DType::bf16}));
    }
  }
  cases.push_back(gemm_case({4096, 4096, 4096, DType::bf16}));
  cases.push_back(step_case({2, 16, 512, 8}, false));
  cases.push_back(step_case({4, 64, 512, 8}, true));
  cases.push_back(adamw_case(int64_t{512} * 512));
  return cases;
}

std::vector<Case> gpu_sampling_cases() {
  std::vector<Case> cases;
  for (const int64_t V : {32000, 151936}) {
    for (const SamplingMode& mode : sampling_modes()) {
      if (mode.name == "mode=greedy" || mode.args.top_k == 50 || mode.name == "mode=top_p,p=0.9") {
        cases.push_back(sample_case(V, mode));
      }
    }
  }
  return cases;
}

// The heads of Qwen2.5-0.5B and 7B, at the lengths of their training steps.
std::vector<Case> gpu_attention_cases() {
  std::vector<Case> cases;
  for (const AttentionSizes& sizes :
       {AttentionSizes{.B = 4, .T = 2048, .H = 14, .G = 2, .D = 64},
        AttentionSizes{.B = 2, .T = 4096, .H = 28, .G = 4, .D = 128},
        AttentionSizes{.B = 1, .T = 512, .H = 14, .G = 2, .D = 64},
        AttentionSizes{.B = 4, .T = 2048, .H = 14, .G = 2, .D = 64, .dtype = DType::f32}}) {
    cases.push_back(attention_case(sizes, false));
    cases.push_back(attention_case(sizes, true));
  }
  return cases;
}

}  // namespace

PreparedCase awaited(Backend& be, const std::function<void()>& work,
                     const std::function<double()>& error) {
  const auto call = [work, &be] {
    work();
    be.synchronize();
  };
  const auto proof = [call, error] {
    call();
    return error();
  };
  return {call, proof, work};
}

Case in_graph(const Case& c) {
  Case recorded = c;
  recorded.name += ",in=graph";
  recorded.prepare = [prepare = c.prepare](Backend& be) {
    PreparedCase prepared = prepare(be);
    const std::shared_ptr<Recorder> recorder = be.make_recorder();
    const auto repeated = [work = prepared.work] {
      for (int i = 0; i < kRepeats; ++i) {
        work();
      }
    };
    prepared.call = [recorder, repeated, &be] {
      recorder->run(0, repeated);
      be.synchronize();
    };
    prepared.repeats = kRepeats;
    return prepared;
  };
  return recorded;
}

std::vector<Case> gpu_cases() {
  std::vector<Case> cases;
  for (const auto& part :
       {gpu_lora_cases(), gpu_attention_cases(), rowwise_cases(), gpu_sampling_cases(),
        std::vector<Case>{kv_append_case({24, 2, 64, 2048, DType::bf16})}}) {
    for (const Case& c : part) {
      cases.push_back(c);
      cases.push_back(in_graph(c));
    }
  }
  const std::vector<Case> models = gpu_model_cases();
  cases.insert(cases.end(), models.begin(), models.end());
  return cases;
}

}  // namespace wick::bench
