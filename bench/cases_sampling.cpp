// Drawing one token from the logits of vocabularies of 32,000 (Llama 2) and 151,936 (Qwen 2.5), and
// the KV cache.
#include <fmt/core.h>

#include "bench/builders.h"
#include "bench/inputs.h"
#include "tests/reference/sample.h"

namespace wick::bench {

std::vector<SamplingMode> sampling_modes() {
  std::vector<SamplingMode> list = {{"mode=greedy", {}},
                                    {"mode=temperature", {.temperature = 0.8F}}};
  for (const int32_t k : {10, 40, 50}) {
    list.push_back({fmt::format("mode=top_k,k={}", k), {.temperature = 1.0F, .top_k = k}});
  }
  for (const char* p : {"0.9", "0.95"}) {
    list.push_back(
        {fmt::format("mode=top_p,p={}", p), {.temperature = 1.0F, .top_p = std::stof(p)}});
  }
  return list;
}

Case sample_case(int64_t V, const SamplingMode& mode) {
  Case c{.suite = "inference",
         .name = fmt::format("sample:V={},{}", V, mode.name),
         .flops = 0,
         .bytes = 4.0 * static_cast<double>(V)};
  c.prepare = [V, mode](Backend& be) {
    // Sampling overwrites its logits, so every call starts with a copy of them, as a decoder's
    // output would arrive.
    const Tensor source = normal_tensor(be, {V}, 3.0F, 1);
    const Tensor logits = be.allocate({V}, DType::f32);
    const Tensor id = be.allocate({1}, DType::i32);
    auto drawn = std::make_shared<int32_t>(0);
    auto uniform = std::make_shared<float>(0.37F);
    const auto work = [=, &be] {
      be.copy(source, logits);
      SampleArgs args = mode.args;
      args.uniform = *uniform;
      be.sample(args, logits, id);
    };
    const auto call = [=, &be] {
      work();
      be.download(id, std::as_writable_bytes(std::span(drawn.get(), 1)));
    };
    const auto error = [=, &be] {
      const std::vector<float> values = values_of(be, source);
      const std::vector<reference::Kept> shares = reference::sampling_shares(mode.args, values);
      for (const float u : {0.001F, 0.2F, 0.37F, 0.5F, 0.83F, 0.999F}) {
        *uniform = u;
        call();
        bool found = false;
        for (const reference::Kept& share : shares) {
          found = found || (share.id == *drawn && share.begin - 1e-5 <= u && u <= share.end + 1e-5);
        }
        if (!found) {
          return 1.0;
        }
      }
      return 0.0;
    };
    return PreparedCase{call, error, work};
  };
  return c;
}

namespace {

// Keys and values of every layer, and a row that is appended to them all.
struct KvSetup {
  KvSetup(Backend& be, const KvSizes& sizes) : backend(be) {
    const DType type = be.activation_type(sizes.dtype);
    for (int64_t i = 0; i < 2 * sizes.layers; ++i) {
      caches.push_back(be.allocate({sizes.P, sizes.G, sizes.D}, type));
      be.fill(0.0F, caches.back());
    }
    row = normal_tensor(be, {1, sizes.G, sizes.D}, 1.0F, 1, type);
    for (int32_t position = 0; position < sizes.P; ++position) {
      slots.push_back(tensor_of(be, std::span(&position, 1)));
    }
  }

  void append(int64_t position) {
    for (const Tensor& cache : caches) {
      backend.kv_append(row, slots[static_cast<size_t>(position)], cache);
    }
  }

  // Of one row, over all caches.
  double error(int64_t position) {
    const std::vector<double> wanted = widened(values_of(backend, row));
    double worst = 0;
    for (const Tensor& cache : caches) {
      worst = std::max(worst, relative_error(values_of(backend, cache.slice(position, 1)), wanted));
    }
    return worst;
  }

  Backend& backend;
  std::vector<Tensor> caches, slots;
  Tensor row;
};

}  // namespace

// The new keys and values of one token into the caches of all layers.
Case kv_append_case(const KvSizes& sizes) {
  const auto [layers, G, D, P, dtype] = sizes;
  Case c{.suite = "inference",
         .name = fmt::format("kv_append:layers={},G={},D={},P={}{}", layers, G, D, P,
                             dtype == DType::f32 ? "" : ",dtype=bf16"),
         .flops = 0,
         .bytes =
             2.0 * 2.0 * static_cast<double>(size_of(dtype)) * static_cast<double>(layers * G * D)};
  c.prepare = [sizes](Backend& be) {
    auto setup = std::make_shared<KvSetup>(be, sizes);
    const int64_t middle = sizes.P / 2;
    return awaited(
        be, [=] { setup->append(middle); }, [=] { return setup->error(middle); });
  };
  return c;
}

namespace {

// An empty cache filled to T tokens, one by one, in all layers, as decoding fills it.
Case kv_fill_case(int64_t layers, int64_t G, int64_t D, int64_t T) {
  Case c{.suite = "inference",
         .name = fmt::format("kv_fill:layers={},G={},D={},T={}", layers, G, D, T),
         .flops = 0,
         .bytes = 2.0 * 2.0 * 4.0 * static_cast<double>(layers * G * D * T)};
  c.prepare = [=](Backend& be) {
    auto setup = std::make_shared<KvSetup>(be, KvSizes{layers, G, D, T});
    const auto call = [=, &be] {
      for (int64_t position = 0; position < T; ++position) {
        setup->append(position);
      }
      be.synchronize();
    };
    const auto error = [=] {
      call();
      return std::max({setup->error(0), setup->error(T / 2), setup->error(T - 1)});
    };
    return PreparedCase{call, error};
  };
  return c;
}

}  // namespace

std::vector<Case> sampling_cases() {
  std::vector<Case> cases;
  for (const int64_t V : {32000, 151936}) {
    for (const SamplingMode& mode : sampling_modes()) {
      cases.push_back(sample_case(V, mode));
    }
  }
  cases.push_back(kv_append_case({1, 2, 64, 2048}));
  cases.push_back(kv_append_case({24, 2, 64, 2048}));  // all of Qwen2.5-0.5B
  for (const int64_t T : {512, 1024, 2048}) {
    cases.push_back(kv_fill_case(24, 2, 64, T));
  }
  return cases;
}

}  // namespace wick::bench
