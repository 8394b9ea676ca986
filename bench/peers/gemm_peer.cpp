// Bare BLAS as a peer: the GEMMs of a case through oneDNN's or OpenBLAS's own threads, speaking the
// protocol of worker.py.
//
// lora_delta is the two products (x A^T) and (S B^T); lora_linear and gemm are the frozen product x
// W^T alone: what no LoRA layer can do without. The scaling is folded into the second product's
// alpha.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#if defined(WICK_PEER_ONEDNN)
#include <dnnl.h>
#else
#include <cblas.h>
#endif

namespace {

struct Product {
  int64_t m, n, k;
};

// c[m,n] = alpha a[m,k] b[n,k]^T, row-major.
void product_nt(const Product& p, float alpha, const float* a, const float* b, float* c) {
#if defined(WICK_PEER_ONEDNN)
  dnnl_sgemm('N', 'T', p.m, p.n, p.k, alpha, a, p.k, b, p.k, 0.0F, c, p.n);
#else
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, p.m, p.n, p.k, alpha, a, p.k, b, p.k, 0.0F,
              c, p.n);
#endif
}

std::vector<float> normal(int64_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> distribution(0.0F, 0.05F);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = distribution(generator);
  }
  return values;
}

std::map<std::string, int64_t> parse_values(const std::string& name) {
  std::map<std::string, int64_t> values;
  size_t at = name.find(':') + 1;
  while (at < name.size()) {
    const size_t equals = name.find('=', at);
    const size_t end = std::min(name.find(',', at), name.size());
    values[name.substr(at, equals - at)] = std::strtoll(name.c_str() + equals + 1, nullptr, 10);
    at = end + 1;
  }
  return values;
}

std::function<void()> make_call(const std::string& name) {
  const std::string kind = name.substr(0, name.find(':'));
  std::map<std::string, int64_t> v = parse_values(name);
  if (kind == "lora_delta") {
    const Product shrink{v["T"], v["r"], v["d"]};
    const Product expand{v["T"], v["d"], v["r"]};
    return [shrink, expand, x = normal(v["T"] * v["d"]), a = normal(v["r"] * v["d"]),
            b = normal(v["d"] * v["r"]), s = normal(v["T"] * v["r"]),
            y = normal(v["T"] * v["d"])]() mutable {
      product_nt(shrink, 1.0F, x.data(), a.data(), s.data());
      product_nt(expand, 2.0F, s.data(), b.data(), y.data());
    };
  }
  if (kind == "lora_linear" || kind == "gemm") {
    const int64_t inputs = kind == "gemm" ? v["K"] : v["d"];
    const int64_t outputs = kind == "gemm" ? v["N"] : v["d"];
    return [p = Product{v["T"], outputs, inputs}, x = normal(v["T"] * inputs),
            w = normal(outputs * inputs), y = normal(v["T"] * outputs)]() mutable {
      product_nt(p, 1.0F, x.data(), w.data(), y.data());
    };
  }
  return nullptr;
}

// The name, version and kernels of the library that this program is linked with.
nlohmann::json describe() {
#if defined(WICK_PEER_ONEDNN)
  const dnnl_version_t* version = dnnl_version();
  // The C interface has the instruction set as a bit mask only.
  return {{"name", "oneDNN"},
          {"version", std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
                          std::to_string(version->patch)},
          {"detail", "cpu_isa " + std::to_string(dnnl_get_effective_cpu_isa())}};
#else
  return {{"name", "OpenBLAS"},
          {"version", openblas_get_config()},
          {"detail", std::string("kernels for ") + openblas_get_corename()}};
#endif
}

// Seconds of up to `most` calls, as many as fit into the budget, at least one.
std::vector<double> sample(const std::function<void()>& call, int most, double budget_s) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  std::vector<double> seconds;
  double elapsed = 0;
  while (static_cast<int>(seconds.size()) < most && (seconds.empty() || elapsed < budget_s)) {
    const Clock::time_point start = Clock::now();
    call();
    const Clock::time_point end = Clock::now();
    seconds.push_back(std::chrono::duration<double>(end - start).count());
    elapsed = std::chrono::duration<double>(end - begin).count();
  }
  return seconds;
}

nlohmann::json answer(const nlohmann::json& request,
                      std::map<std::string, std::function<void()>>& prepared) {
  if (request.value("info", false)) {
    return describe();
  }
  const std::string name = request.at("case");
  if (prepared.find(name) == prepared.end()) {
    prepared[name] = make_call(name);
    for (int i = 0; prepared[name] && i < 3; ++i) {
      prepared[name]();
    }
  }
  if (!prepared[name]) {
    return {{"unavailable", "bare BLAS has no such operation"}};
  }
  const double settle_s = request.value("settle_s", 0.0);
  if (settle_s > 0) {
    sample(prepared[name], std::numeric_limits<int>::max(), settle_s);
  }
  return {{"seconds", sample(prepared[name], request.at("samples").get<int>(),
                             request.value("budget_s", 1e9))}};
}

}  // namespace

int main() {
  std::map<std::string, std::function<void()>> prepared;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(nlohmann::json::parse(line), prepared) << std::endl;
  }
}
