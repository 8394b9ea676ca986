// Decoding with and without an adapter, and reading memory, in turns.
#include "bench/decoding.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/models.h"
#include "wick/base/error.h"
#include "wick/base/parallel.h"
#include "wick/infer/generator.h"

namespace wick::bench {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kRank = 16;
constexpr int64_t kPromptTokens = 16;
constexpr int kWarmUpPairs = 2;

// Puts the same adapter on the layers and takes it off, for nothing.
class Switch {
 public:
  explicit Switch(const AttachedAdapter& adapter) : layers_(adapter.layers) {
    for (const LinearLayer* layer : layers_) {
      slots_.push_back(layer->lora);
    }
  }

  void set(bool on) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i]->lora = on ? slots_[i] : std::nullopt;
    }
  }

 private:
  std::vector<LinearLayer*> layers_;
  std::vector<std::optional<LoraSlot>> slots_;
};

// What was measured of tokens without and with the adapter, in the order taken.
struct Side {
  std::vector<double> seconds;
  std::vector<double> read_gbs;  // the mean of the readings before and after
};

// Gets the times of tokens as they come: two without and with the adapter, two with and without it,
// and so on, so that neither side is always the first of a pair.
class Turns {
 public:
  Turns(Switch& adapter, const MemoryReader& memory, int threads)
      : adapter_(adapter), memory_(memory), threads_(threads) {}

  void begin() { prepare(); }
  void end_of_token() {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double before = reading_;
    const int turn = turn_++;
    const bool was_adapted = adapted(turn);
    prepare();
    if (turn >= 2 * kWarmUpPairs) {
      Side& side = sides[was_adapted ? 1 : 0];
      side.seconds.push_back(seconds);
      side.read_gbs.push_back(0.5 * (before + reading_));
    }
  }

  std::array<Side, 2> sides;

 private:
  static bool adapted(int turn) { return turn % 4 == 1 || turn % 4 == 2; }

  void prepare() {
    adapter_.set(adapted(turn_));
    constexpr int kPasses = 2;
    reading_ = 0;
    for (int i = 0; i < kPasses; ++i) {
      reading_ = std::max(reading_, memory_.pass(threads_));
    }
    start_ = Clock::now();
  }

  Switch& adapter_;
  const MemoryReader& memory_;
  int threads_;
  int turn_ = 0;
  double reading_ = 0;
  Clock::time_point start_;
};

// "1.02 (1.01-1.04)": median and quartiles.
std::string text_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {
    return values[static_cast<size_t>(std::lround(part * static_cast<double>(values.size() - 1)))];
  };
  return fmt::format("{:.3f} ({:.3f}-{:.3f})", Timing{values}.median(), at(0.25), at(0.75));
}

}  // namespace

nlohmann::ordered_json run_decoding(Backend& backend, ThreadPool& readers, const NamedShape& shape,
                                    int pairs, std::ostream& out) {
  check(backend.name() == "cpu", "bench: decoding in turns is for the CPU, not for {}",
        backend.name());
  const std::unique_ptr<Decoder> decoder = random_decoder(backend, shape.config, DType::bf16);
  AttachedAdapter adapter = attach_everywhere(backend, *decoder, kRank);
  adapter.keep_for_inference(backend);
  const MemoryReader memory(readers);
  Switch on_and_off(adapter);
  Turns turns(on_and_off, memory, readers.threads());
  bool first = true;  // comes with the prompt
  generate(*decoder, some_ids(kPromptTokens),
           {.max_tokens = 1 + 2 * (kWarmUpPairs + static_cast<int64_t>(pairs))}, [&](int32_t) {
             first ? turns.begin() : turns.end_of_token();
             first = false;
             return true;
           });
  const auto& [base, adapted] = turns.sides;
  const double bytes = product_parameters(shape.config) * size_of(DType::bf16);
  const double adapter_bytes =
      adapter_parameters(shape.config, kRank) * size_of(adapter.values.dtype());
  std::vector<double> ratios;
  std::vector<double> shares;
  for (size_t i = 0; i < base.seconds.size(); ++i) {
    ratios.push_back(adapted.seconds[i] / base.seconds[i]);
    shares.push_back(bytes / base.seconds[i] * 1e-9 / base.read_gbs[i]);
  }
  out << fmt::format(
      "a token: {:.1f} ms, with an adapter of rank {} {:.1f} ms (medians of {})\n"
      "time with the adapter over time without, by pairs: {}, its bytes {:.3f}\n"
      "share of the bandwidth of reading memory, without it: {}\n",
      Timing{base.seconds}.median() * 1e3, kRank, Timing{adapted.seconds}.median() * 1e3,
      base.seconds.size(), text_of(ratios), 1 + adapter_bytes / bytes, text_of(shares));
  return {{"case", fmt::format("decode:shape={},prompt={},dtype=bf16,r={}", shape.name,
                               kPromptTokens, kRank)},
          {"bytes_of_token", bytes},
          {"adapter_bytes_of_token", adapter_bytes},
          {"base_seconds", base.seconds},
          {"adapted_seconds", adapted.seconds},
          {"base_read_gbs", base.read_gbs},
          {"adapted_read_gbs", adapted.read_gbs}};
}

}  // namespace wick::bench
