// Tokens whose operations are launched together, against the same operations one by one: the same
// bits. What a single operation computes, the conformance tests prove.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "wick/backend/registry.h"
#include "wick/base/random.h"
#include "wick/io/weight_source.h"
#include "wick/lora/attach.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

std::vector<float> values_of(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  backend.download(tensor, std::as_writable_bytes(std::span(values)));
  return values;
}

std::unique_ptr<Decoder> bf16_decoder(Backend& backend, const ModelConfig& config) {
  const std::unique_ptr<Decoder> wide = Decoder::random(backend, config, 3);
  MemoryWeights weights;
  for (const Parameter* parameter : wide->parameters()) {
    const Tensor& value = parameter->value;
    // Values large enough that attention tells keys apart, and norms and biases that matter.
    const Random random(7, std::hash<std::string>{}(parameter->name));
    std::vector<float> host(static_cast<size_t>(value.elements()));
    const bool matrix = value.shape().rank() == 2;
    const float deviation =
        matrix ? 1.5F / std::sqrt(static_cast<float>(value.dim(value.shape().rank() - 1))) : 0.2F;
    const float mean = parameter->name.find("norm") != std::string::npos ? 1.0F : 0.0F;
    for (size_t i = 0; i < host.size(); ++i) {
      host[i] = mean + deviation * random.normal(i);
    }
    backend.upload(std::as_bytes(std::span(host)), value);
    const Tensor narrow = backend.allocate(value.shape(), DType::bf16);
    backend.cast(value, narrow);
    weights.put(parameter->name, narrow);
  }
  return std::make_unique<Decoder>(backend, config, weights);
}

AttachedAdapter adapt(Backend& backend, Decoder& decoder, int64_t rank) {
  AdapterConfig config;
  config.rank = rank;
  config.alpha = 2.0 * static_cast<double>(rank);
  config.target_modules = ModuleSelection::all_linear();
  AttachedAdapter adapter = attach_new(backend, decoder.linears(), config, 5);
  const Random random(11, 0);
  std::vector<float> host(static_cast<size_t>(adapter.values.elements()));
  for (size_t i = 0; i < host.size(); ++i) {
    host[i] = 0.05F * random.normal(i);
  }
  backend.upload(std::as_bytes(std::span(host)), adapter.values);
  return adapter;
}

struct ProgramCase {
  const char* name;
  ModelConfig config;
  int64_t rank = 0;
  int64_t prompt = 10;
  int tokens = 60;
};

ModelConfig config_of(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads,
                      int64_t kv_heads, int64_t head_dim) {
  ModelConfig config;
  config.family = "qwen2";
  config.vocab_size = 1000;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_layers = layers;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.max_positions = 8192;
  config.qkv_bias = true;
  return config;
}

std::vector<ProgramCase> program_cases() {
  std::vector<ProgramCase> cases = {
      {"plain", config_of(384, 1024, 3, 6, 2, 64)},
      {"adapted", config_of(896, 4864, 3, 14, 2, 64), 16},
      {"wide_heads", config_of(512, 1536, 2, 8, 2, 128), 8},
      {"odd_rank", config_of(352, 992, 2, 4, 4, 88), 5},
      {"high_rank", config_of(384, 1024, 2, 6, 2, 64), 64},
      {"many_queries", config_of(1024, 1024, 2, 16, 1, 64), 16},
      {"wide_many_queries", config_of(1024, 1024, 2, 16, 1, 128), 16},
      {"small", config_of(64, 160, 4, 4, 2, 16), 8},
      {"wide_row", config_of(3584, 1024, 1, 28, 4, 128), 0, 10, 20},
      {"long_row", config_of(256, 18944, 1, 4, 2, 64), 16, 10, 20},
      // Tiles of rows so long that they have fewer, in pieces: of even and odd numbers of runs.
      {"large_tiles", config_of(3584, 2368, 1, 8, 2, 128), 16, 10, 20},
      {"odd_runs", config_of(2912, 2912, 1, 4, 2, 64), 16, 10, 20},
      {"wide_deep", config_of(256, 512, 30, 4, 2, 128), 0},
      // More channels a block than it ends at once.
      {"wide_gate", config_of(384, 20480, 2, 6, 2, 64), 16, 10, 20},
      // Several launches: more operations than one takes.
      {"deep", config_of(384, 512, 30, 6, 2, 64), 16},
      // Several blocks a key head.
      {"long", config_of(384, 1024, 2, 6, 2, 64), 16, 700, 30},
      {"past_256", config_of(384, 1024, 2, 6, 2, 64), 16, 240, 40},
      {"longer", config_of(384, 1024, 2, 6, 2, 64), 0, 6000, 10},
      {"wide_long", config_of(512, 1536, 2, 8, 2, 128), 8, 2100, 20},
      // Few tokens, for tools under which each takes long (tools/sanitize_cuda.sh).
      {"brief_small", config_of(64, 160, 2, 4, 2, 16), 8, 10, 4},
      {"brief", config_of(384, 1024, 1, 6, 2, 64), 16, 10, 3},
      {"brief_wide", config_of(512, 1536, 1, 8, 2, 128), 0, 300, 3},
  };
  cases[0].config.mlp_bias = cases[0].config.output_bias = true;
  ModelConfig normed = config_of(384, 1024, 3, 6, 2, 64);
  normed.family = "qwen3";
  normed.qk_norm = true;
  cases.push_back({"head_norms", normed, 16});
  ModelConfig windowed = config_of(384, 1024, 2, 6, 2, 64);
  windowed.sliding_window = 100;
  cases.push_back({"windowed", windowed, 16, 90, 40});
  return cases;
}

class RowProgramCuda : public ::testing::TestWithParam<ProgramCase> {
 protected:
  void SetUp() override {
    if (make_backend("auto")->name() != "cuda") {
      GTEST_SKIP() << "no CUDA device answers here";
    }
  }
};

// A sequence of one token after the other, recorded or not.
class Tokens {
 public:
  Tokens(Decoder& decoder, const ProgramCase& c, std::unique_ptr<Recorder> recorder)
      : decoder_(decoder),
        cache_(decoder.make_cache(c.prompt + c.tokens)),
        token_(allocate_token_batch(decoder.backend(), 1, 1)),
        logits_(decoder.backend().allocate({1, decoder.config().vocab_size}, DType::f32)),
        recorder_(std::move(recorder)) {
    std::vector<int32_t> prompt(static_cast<size_t>(c.prompt));
    for (size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = static_cast<int32_t>(i * 37 % 1000);
    }
    decoder.hidden(nullptr, make_next_batch(decoder.backend(), prompt, 0), {}, &cache_);
  }

  std::vector<float> next(int32_t id) {
    set_next_token(decoder_.backend(), id, cache_.length(), token_);
    decoder_.begin(token_, &cache_);
    const auto work = [this] {
      decoder_.write_logits(decoder_.run(nullptr, token_, {}, &cache_).value, logits_);
    };
    if (recorder_ != nullptr) {
      recorder_->run(0, work);
    } else {
      work();
    }
    return values_of(decoder_.backend(), logits_);
  }

 private:
  Decoder& decoder_;
  KvCache cache_;
  TokenBatch token_;
  Tensor logits_;
  std::unique_ptr<Recorder> recorder_;
};

TEST_P(RowProgramCuda, TokensHaveTheBitsOfTheirOperationsOneByOne) {
  const ProgramCase& c = GetParam();
  const auto backend = make_backend("cuda");
  const std::unique_ptr<Decoder> decoder = bf16_decoder(*backend, c.config);
  std::optional<AttachedAdapter> adapter;
  if (c.rank > 0) {
    adapter = adapt(*backend, *decoder, c.rank);
  }
  Tokens together(*decoder, c, backend->make_recorder());
  Tokens singly(*decoder, c, nullptr);
  for (int i = 0; i < c.tokens; ++i) {
    const int32_t id = i * 73 % 1000;
    const std::vector<float> got = together.next(id);
    const std::vector<float> wanted = singly.next(id);
    ASSERT_TRUE(std::isfinite(wanted[0])) << "token " << i;
    ASSERT_EQ(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)), 0)
        << "token " << i << ", " << got[0] << " for " << wanted[0];
  }
}

INSTANTIATE_TEST_SUITE_P(, RowProgramCuda, ::testing::ValuesIn(program_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace wick
