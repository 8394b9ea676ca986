// The table of angles stays where it is for all positions that a cache or a batch has room for:
// recorded work reads the table that it was recorded with (Recorder in core/backend.h).
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "wick/backend/profiling_backend.h"
#include "wick/backend/registry.h"
#include "wick/models/decoder.h"

namespace wick {
namespace {

// Notes the tables that kernels are asked to read.
class TableWatch : public ProfilingBackend {
 public:
  using ProfilingBackend::ProfilingBackend;

  void rope(In x, In positions, In table, RopeDirection direction, Out y) override {
    tables.insert(table.address());
    ProfilingBackend::rope(x, positions, table, direction, y);
  }
  void rope_append(In positions, In table, Out q, Out k, In v, Out k_cache, Out v_cache) override {
    tables.insert(table.address());
    ProfilingBackend::rope_append(positions, table, q, k, v, k_cache, v_cache);
  }
  void append_attention(const FreshTokens& tokens, Out k_cache, Out v_cache, In spans,
                        const AttentionArgs& args, Out o) override {
    tables.insert(tokens.rope_table.address());
    ProfilingBackend::append_attention(tokens, k_cache, v_cache, spans, args, o);
  }

  std::set<const void*> tables;
};

class Angles : public testing::Test {
 protected:
  Angles() : inner_(make_backend("cpu")), backend_(*inner_, profile_) {
    ModelConfig config;
    config.family = "qwen2";
    config.vocab_size = 40;
    config.hidden_size = 16;
    config.intermediate_size = 24;
    config.num_layers = 1;
    config.num_heads = 2;
    config.num_kv_heads = 1;
    config.head_dim = 8;
    config.max_positions = 2000;
    decoder_ = Decoder::random(backend_, config, 1);
  }
  static std::vector<int32_t> ids(size_t count) {
    std::vector<int32_t> ids(count);
    std::iota(ids.begin(), ids.end(), 0);
    for (int32_t& id : ids) {
      id %= 40;
    }
    return ids;
  }

  Profile profile_;
  std::unique_ptr<Backend> inner_;
  TableWatch backend_;
  std::unique_ptr<Decoder> decoder_;
};

TEST_F(Angles, StayInPlaceWhileACacheFills) {
  KvCache cache = decoder_->make_cache(1100);  // tables hold 256 positions at least, and double
  for (const size_t size : {200, 50, 10, 300, 540}) {
    decoder_->hidden(nullptr, make_next_batch(backend_, ids(size), cache.length()), {}, &cache);
  }
  EXPECT_EQ(cache.length(), 1100);
  EXPECT_EQ(backend_.tables.size(), 1U);
}

TEST_F(Angles, StayInPlaceForBatchesOfOneSize) {
  for (const int64_t length : {100, 150, 300, 600}) {
    const std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(600 / length),
                                                      ids(static_cast<size_t>(length)));
    decoder_->hidden(nullptr, make_token_batch(backend_, sequences), {});
  }
  EXPECT_EQ(backend_.tables.size(), 1U);
}

}  // namespace
}  // namespace wick
