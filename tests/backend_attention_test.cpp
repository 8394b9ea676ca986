// Attention, its cache and the rotary embedding of every back end against the scalar reference.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "tests/reference/attention.h"
#include "tests/support/conformance.h"

namespace wick {
namespace {

using test::Conformance;
using test::poisoned;
using test::upload;
using test::upload_ids;
using test::Values;

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(test::conformance_cases()),
                         test::name_of_case);

struct AttentionCase {
  int64_t H, G, D;
  std::vector<int32_t> spans;  // rows of {q_begin, q_count, k_begin, k_count}
  bool causal = true;
  int64_t window = 0;
};

// Appends `T` tokens behind `past` to a cache with room for `capacity`.
struct AppendCase {
  int32_t T, past;
  int64_t H, G, D, R, capacity;
  int64_t window = 0;
};

// Cases stand in several tests because each takes long under racecheck (tools/sanitize_cuda.sh).
class AttentionConformance : public Conformance {
 protected:
  void expect_attention(const std::vector<AttentionCase>& cases);
  void expect_append_attention(const std::vector<AppendCase>& cases);
};

INSTANTIATE_TEST_SUITE_P(Backends, AttentionConformance,
                         ::testing::ValuesIn(test::conformance_cases()), test::name_of_case);

struct Extents {
  int64_t queries = 0, keys = 0;
};

Extents extents_of(const std::vector<int32_t>& spans) {
  Extents extents;
  for (size_t i = 0; i < spans.size(); i += 4) {
    extents.queries += spans[i + 1];
    extents.keys += spans[i + 3];
  }
  return extents;
}

void AttentionConformance::expect_attention(const std::vector<AttentionCase>& cases) {
  for (const AttentionCase& c : cases) {
    const auto [H, G, D] = std::array{c.H, c.G, c.D};
    const auto S = static_cast<int64_t>(c.spans.size() / 4);
    const auto [Tq, Tk] = extents_of(c.spans);
    SCOPED_TRACE(fmt::format("H {} G {} D {} Tq {} Tk {}", H, G, D, Tq, Tk));
    const AttentionArgs args{c.causal, c.window, 0.3F};
    const DType type = activations();
    const Values q = random(Tq * H * D, type);
    const Values k = random(Tk * G * D, type);
    const Values v = random(Tk * G * D, type);
    const Values d_o = random(Tq * H * D, type);
    Values o(Tq * H * D);
    Values lse(Tq * H);
    const reference::AttentionSize size{H, G, D, S};
    reference::attention(q.data(), k.data(), v.data(), c.spans.data(), args, size, o.data(),
                         lse.data());
    Values dq(q.size());
    Values dk(k.size());
    Values dv(v.size());
    reference::attention_backward<double>(
        {q.data(), k.data(), v.data(), o.data(), lse.data(), d_o.data()}, c.spans.data(), args,
        size, dq.data(), dk.data(), dv.data());
    const Shape q_shape{Tq, H, D};
    const Shape k_shape{Tk, G, D};
    expect_outputs(
        [&, H = H](Backend& backend) {
          const Tensor device_q = upload(backend, q, q_shape, type);
          const Tensor device_k = upload(backend, k, k_shape, type);
          const Tensor device_v = upload(backend, v, k_shape, type);
          const Tensor spans = upload_ids(backend, c.spans, {S, 4});
          const Tensor device_o = poisoned(backend, q_shape, type);
          const Tensor device_lse = poisoned(backend, {Tq, H});
          const Tensor unaided = poisoned(backend, q_shape, type);
          backend.attention(device_q, device_k, device_v, spans, args, device_o, device_lse);
          backend.attention(device_q, device_k, device_v, spans, args, unaided, {});
          const Tensor device_dq = poisoned(backend, q_shape, type);
          const Tensor device_dk = poisoned(backend, k_shape, type);
          const Tensor device_dv = poisoned(backend, k_shape, type);
          backend.attention_backward(device_q, device_k, device_v, device_o, device_lse,
                                     upload(backend, d_o, q_shape, type), spans, args, device_dq,
                                     device_dk, device_dv);
          return std::vector{device_o, device_lse, unaided, device_dq, device_dk, device_dv};
        },
        {o, lse, o, dq, dk, dv});
  }
}

TEST_P(AttentionConformance, PackedSequencesAndTheirGradient) {
  expect_attention({
      {1, 1, 1, {0, 1, 0, 1}},
      {4, 2, 16, {0, 5, 0, 5}},
      {6, 2, 64, {0, 37, 0, 37, 37, 1, 37, 1, 38, 70, 38, 70}},
      {3, 3, 33, {0, 67, 0, 67}},
      {8, 2, 128, {0, 65, 0, 65, 65, 0, 65, 0}},  // an empty run
      {2, 1, 96, {0, 129, 0, 129}},
  });
}

TEST_P(AttentionConformance, RunsThatEndInsideBlocksOfRowsAndTheirGradient) {
  // The last rows of spans are not used.
  expect_attention({{7, 1, 128, {0, 130, 0, 130, 130, 70, 130, 70, 0, 0, 0, 0, 0, 0, 0, 0}}});
}

// So many rows and heads that a back end may have other kernels for them.
TEST_P(AttentionConformance, ManyTilesOfRowsAndTheirGradient) {
  expect_attention({{43, 1, 128, {0, 130, 0, 130, 130, 127, 130, 127}}});
}

TEST_P(AttentionConformance, ManyTilesOfRowsWithAWindowAndTheirGradient) {
  expect_attention({{32, 4, 128, {0, 300, 0, 300, 300, 5, 300, 40, 305, 215, 340, 215}, true, 45}});
}

TEST_P(AttentionConformance, ManyRowsOfOneRunAndTheirGradient) {
  expect_attention({{16, 2, 64, {0, 1030, 0, 1100}, true, 40}});
}

// A block's first tile has more rounds than the ring has stages twice, and some blocks have two.
TEST_P(AttentionConformance, ManyTilesThroughManyKeysAndTheirGradient) {
  expect_attention({{140, 1, 128, {0, 66, 0, 577}}});
}

TEST_P(AttentionConformance, WindowsAndTheirGradient) {
  expect_attention({
      {4, 1, 80, {0, 150, 0, 150}, true, 13},
      {2, 2, 32, {0, 131, 0, 131}, true, 64},
      {14, 2, 64, {0, 9, 0, 9, 9, 128, 9, 128, 137, 120, 137, 120}, true, 40},
      {2, 1, 64, {0, 200, 0, 200}, true, 1},  // each token sees itself alone
  });
}

TEST_P(AttentionConformance, TokensBehindACacheAndTheirGradient) {
  expect_attention({
      {14, 2, 64, {0, 1, 0, 301}},                                 // one new token after 300
      {4, 2, 24, {0, 7, 0, 90, 7, 3, 90, 3}},                      // a chunk of prompt
      {4, 2, 16, {0, 1, 0, 200}, true, 50},                        // a token with a window
      {2, 1, 128, {0, 100, 0, 164}},                               // a long chunk
      {7, 1, 80, {0, 5, 0, 100}, true, 31},                        // a short one, with a window
      {8, 2, 128, {0, 2, 0, 150, 2, 1, 150, 60, 3, 2, 210, 200}},  // several sequences decode
  });
}

TEST_P(AttentionConformance, OfAnEncoderAndItsGradient) {
  expect_attention({
      {4, 4, 20, {0, 29, 0, 29}, false},
      {2, 2, 64, {0, 70, 0, 70, 70, 90, 70, 90}, false},
  });
}

TEST_P(AttentionConformance, HeadsThatFillNoTileAndTheirGradient) {
  expect_attention({
      {4, 2, 36, {0, 70, 0, 70}, true, 21},
      {3, 1, 68, {0, 33, 0, 80, 33, 64, 80, 64}, false},
      {2, 1, 100, {0, 130, 0, 130}, false, 40},
      {6, 2, 124, {0, 61, 0, 61, 61, 70, 61, 70}},
  });
}

TEST_P(AttentionConformance, HeadsOfNoWholeChunksAndTheirGradient) {
  expect_attention({
      {6, 2, 63, {0, 70, 0, 70}, true, 21},
      {4, 1, 127, {0, 20, 0, 40, 20, 64, 40, 64}},
      {2, 2, 81, {0, 70, 0, 70}, false},
  });
}

TEST_P(AttentionConformance, WideHeadsAndTheirGradient) {
  expect_attention({
      {2, 1, 256, {0, 40, 0, 40}},
      {2, 1, 256, {0, 2, 0, 40}},
      {1, 1, 200, {0, 70, 0, 70}},
  });
}

TEST_P(Conformance, TokensOutsideEverySpanGetNoGradient) {
  const std::vector<int32_t> spans = {1, 2, 1, 2};
  const DType type = activations();
  for (const int64_t G : {1, 2}) {
    for (const auto& backend : backends_) {
      const Tensor q = upload(*backend, random(int64_t{4} * 2 * 8), {4, 2, 8}, type);
      const Tensor k = upload(*backend, random(4 * G * 8), {4, G, 8}, type);
      const Tensor lse = upload(*backend, Values(8, 1.0), {4, 2});
      const Tensor dq = poisoned(*backend, {4, 2, 8}, type);
      const Tensor dk = poisoned(*backend, {4, G, 8}, type);
      const Tensor dv = poisoned(*backend, {4, G, 8}, type);
      backend->attention_backward(q, k, k, q, lse, q, upload_ids(*backend, spans, {1, 4}), {}, dq,
                                  dk, dv);
      for (const Tensor& gradient : {dq, dk, dv}) {
        const Values values = test::download(*backend, gradient);
        const size_t row = values.size() / 4;
        for (size_t i = 0; i < row; ++i) {
          ASSERT_EQ(values[i], 0.0);
          ASSERT_EQ(values[3 * row + i], 0.0);
          ASSERT_FALSE(std::isnan(values[row + i]));
        }
      }
    }
  }
}

TEST_P(Conformance, AttentionReadsNothingBehindTheKeysOfARun) {
  // A cache holds anything, here NaN, where no token has been written yet.
  const DType type = activations();
  struct Sizes {
    int32_t queries, used;
    int64_t H, D, capacity;
  };
  std::vector<Sizes> cases;
  for (const int32_t queries : {1, 3, 40, 70}) {
    cases.push_back({queries, 75, 7, 64, 700});
    cases.push_back({queries, 75, 7, 64, 1500});
    cases.push_back({queries, 75, 7, 33, 700});
  }
  cases.push_back({150, 160, 64, 128, 300});
  for (const auto& [Tq, used, H, D, capacity] : cases) {
    SCOPED_TRACE(fmt::format("queries {} H {} D {} capacity {}", Tq, H, D, capacity));
    const std::vector<int32_t> spans = {0, Tq, 0, used};
    const Shape q_shape{Tq, H, D};
    const Shape k_shape{capacity, 1, D};
    const Values q = random(Tq * H * D, type);
    Values k = random(capacity * D, type);
    Values v = random(capacity * D, type);
    std::fill(k.begin() + used * D, k.end(), std::nan(""));
    std::fill(v.begin() + used * D, v.end(), std::nan(""));
    Values o(q.size());
    Values lse(Tq * H);
    reference::attention(q.data(), k.data(), v.data(), spans.data(), {}, {H, 1, D, 1}, o.data(),
                         lse.data());
    expect_outputs(
        [&, Tq = Tq, H = H](Backend& backend) {
          const Tensor device_o = poisoned(backend, q_shape, type);
          const Tensor device_lse = poisoned(backend, {Tq, H});
          backend.attention(upload(backend, q, q_shape, type), upload(backend, k, k_shape, type),
                            upload(backend, v, k_shape, type), upload_ids(backend, spans, {1, 4}),
                            {}, device_o, device_lse);
          return std::vector{device_o, device_lse};
        },
        {o, lse});
  }
}

TEST_P(Conformance, AttentionSurvivesLargeScores) {
  // Scores near 900: the softmax must subtract the largest before it exponentiates.
  constexpr int64_t T = 9;
  constexpr int64_t D = 8;
  const DType type = activations();
  const Values q = random(T * D, type, 30.0);
  const Values k = random(T * D, type, 30.0);
  const Values v = random(T * D, type);
  const std::vector<int32_t> spans = {0, T, 0, T};
  const AttentionArgs args{.scale = 0.25F};
  Values o(T * D);
  Values lse(T);
  reference::attention(q.data(), k.data(), v.data(), spans.data(), args, {1, 1, D, 1}, o.data(),
                       lse.data());
  for (const auto& backend : backends_) {
    const Tensor device_o = poisoned(*backend, {T, 1, D}, type);
    backend->attention(upload(*backend, q, {T, 1, D}, type), upload(*backend, k, {T, 1, D}, type),
                       upload(*backend, v, {T, 1, D}, type), upload_ids(*backend, spans, {1, 4}),
                       args, device_o, {});
    const Values actual = test::download(*backend, device_o);
    for (size_t i = 0; i < actual.size(); ++i) {
      // A score of this size carries an f32 rounding error of about 1e-4.
      ASSERT_NEAR(actual[i], o[i], std::max(5e-4, test::tolerance(type)));
    }
  }
}

TEST_P(Conformance, KvAppendWritesTheNamedSlotsOnly) {
  const Values x = random(int64_t{3} * 2 * 5, activations());
  const Values before = random(int64_t{7} * 2 * 5, activations());
  const std::vector<int32_t> slots = {6, 0, 3};
  Values expected = before;
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t i = 0; i < 10; ++i) {
      expected[int64_t{slots[t]} * 10 + i] = x[t * 10 + i];
    }
  }
  expect_outputs(
      [&](Backend& backend) {
        const Tensor cache = upload(backend, before, {7, 2, 5}, activations());
        backend.kv_append(upload(backend, x, {3, 2, 5}, activations()),
                          upload_ids(backend, slots, {3}), cache);
        return std::vector{cache};
      },
      {expected});
}

TEST_P(Conformance, RopeAndItsInverse) {
  for (const reference::RopeSize size : {reference::RopeSize{0, 1, 4, 4},
                                         {1, 1, 2, 2},
                                         {13, 3, 20, 12},
                                         {67, 14, 64, 64},
                                         {5, 2, 80, 80}}) {
    constexpr int64_t kPositions = 50;
    const DType type = activations();
    const Values x = random(size.T * size.H * size.D, type);
    const Values table = random(kPositions * size.R);
    const std::vector<int32_t> positions = random_ids(size.T, kPositions);
    for (const RopeDirection direction : {RopeDirection::forward, RopeDirection::inverse}) {
      Values y(x.size());
      reference::rope(x.data(), positions.data(), table.data(), direction, size, y.data());
      const Shape shape{size.T, size.H, size.D};
      expect_outputs(
          [&](Backend& backend) {
            const Tensor device_table = upload(backend, table, {kPositions, size.R});
            const Tensor at = upload_ids(backend, positions, {size.T});
            const Tensor apart = poisoned(backend, shape, type);
            const Tensor in_place = upload(backend, x, shape, type);
            backend.rope(in_place, at, device_table, direction, apart);
            backend.rope(in_place, at, device_table, direction, in_place);
            return std::vector{apart, in_place};
          },
          {y, y});
    }
  }
}

TEST_P(Conformance, RopeAppendTurnsTheQueriesAndFillsTheCaches) {
  constexpr int64_t kPositions = 50;
  constexpr int64_t H = 6;
  constexpr int64_t G = 2;
  const DType type = activations();
  for (const auto& [D, R] : {std::pair<int64_t, int64_t>{64, 64}, {20, 12}}) {
    for (const int32_t T : {0, 1, 5}) {
      const Values q = random(T * H * D, type);
      const Values k = random(T * G * D, type);
      const Values v = random(T * G * D, type);
      const Values before = random(kPositions * G * D, type);
      const Values table = random(kPositions * R);
      std::vector<int32_t> positions;
      positions.reserve(T);
      for (int32_t t = 0; t < T; ++t) {
        positions.push_back(40 - 7 * t);
      }
      Values turned_q(q.size());
      Values turned_k(k.size());
      constexpr auto kForward = RopeDirection::forward;
      reference::rope(q.data(), positions.data(), table.data(), kForward, {T, H, D, R},
                      turned_q.data());
      reference::rope(k.data(), positions.data(), table.data(), kForward, {T, G, D, R},
                      turned_k.data());
      Values k_cache = before;
      Values v_cache = before;
      for (int64_t i = 0; i < T * G * D; ++i) {
        const int64_t at = positions[i / (G * D)] * G * D + i % (G * D);
        k_cache[at] = turned_k[i];
        v_cache[at] = v[i];
      }
      expect_outputs(
          [&, D = D, R = R](Backend& backend) {
            const Tensor device_q = upload(backend, q, {T, H, D}, type);
            const Tensor device_k_cache = upload(backend, before, {kPositions, G, D}, type);
            const Tensor device_v_cache = upload(backend, before, {kPositions, G, D}, type);
            backend.rope_append(
                upload_ids(backend, positions, {T}), upload(backend, table, {kPositions, R}),
                device_q, upload(backend, k, {T, G, D}, type), upload(backend, v, {T, G, D}, type),
                device_k_cache, device_v_cache);
            return std::vector{device_q, device_k_cache, device_v_cache};
          },
          {turned_q, k_cache, v_cache});
    }
  }
}

void AttentionConformance::expect_append_attention(const std::vector<AppendCase>& cases) {
  const DType type = activations();
  constexpr auto kForward = RopeDirection::forward;
  for (const AppendCase& c : cases) {
    SCOPED_TRACE(
        fmt::format("T {} past {} H {} D {} R {} of {}", c.T, c.past, c.H, c.D, c.R, c.capacity));
    const int64_t heads = c.G * c.D;
    const Values q = random(c.T * c.H * c.D, type);
    const Values k = random(c.T * heads, type);
    const Values v = random(c.T * heads, type);
    const Values table = random((c.past + c.T) * c.R);
    const std::array before = {random(c.capacity * heads, type), random(c.capacity * heads, type)};
    std::vector<int32_t> positions;
    positions.reserve(c.T);
    for (int32_t t = 0; t < c.T; ++t) {
      positions.push_back(c.past + t);
    }
    Values turned_q(q.size());
    Values turned_k(k.size());
    reference::rope(q.data(), positions.data(), table.data(), kForward, {c.T, c.H, c.D, c.R},
                    turned_q.data());
    reference::rope(k.data(), positions.data(), table.data(), kForward, {c.T, c.G, c.D, c.R},
                    turned_k.data());
    for (Values* turned : {&turned_q, &turned_k}) {
      for (double& value : *turned) {
        value = test::rounded(value, type);
      }
    }
    Values k_cache = before[0];
    Values v_cache = before[1];
    std::copy(turned_k.begin(), turned_k.end(), k_cache.begin() + c.past * heads);
    std::copy(v.begin(), v.end(), v_cache.begin() + c.past * heads);
    const std::vector<int32_t> spans = {0, c.T, 0, c.past + c.T};
    const AttentionArgs args{.window = c.window, .scale = 0.3F};
    Values o(q.size());
    Values lse(c.T * c.H);
    reference::attention(turned_q.data(), k_cache.data(), v_cache.data(), spans.data(), args,
                         {c.H, c.G, c.D, 1}, o.data(), lse.data());
    expect_outputs(
        [&](Backend& backend) {
          const Shape cache{c.capacity, c.G, c.D};
          const Tensor device_k = upload(backend, before[0], cache, type);
          const Tensor device_v = upload(backend, before[1], cache, type);
          const Tensor device_o = poisoned(backend, {c.T, c.H, c.D}, type);
          const FreshTokens tokens{
              upload_ids(backend, positions, {c.T}), upload(backend, table, {c.past + c.T, c.R}),
              upload(backend, q, {c.T, c.H, c.D}, type), upload(backend, k, {c.T, c.G, c.D}, type),
              upload(backend, v, {c.T, c.G, c.D}, type)};
          backend.append_attention(tokens, device_k, device_v, upload_ids(backend, spans, {1, 4}),
                                   args, device_o);
          return std::vector{device_o, device_k, device_v};
        },
        {o, k_cache, v_cache});
  }
}

// Caches that are one part and many, with the token at their end or inside; the rest is not seen.
TEST_P(AttentionConformance, AppendedTokensAreSeen) {
  expect_append_attention({{1, 0, 14, 2, 64, 64, 40},
                           {1, 39, 14, 2, 64, 64, 40},
                           {1, 90, 16, 1, 128, 128, 100},
                           {1, 20, 4, 4, 20, 12, 50},
                           {1, 20, 40, 2, 64, 64, 50},
                           {1, 60, 4, 1, 256, 256, 100}});
}

TEST_P(AttentionConformance, AppendedTokensAreSeenInSeveralParts) {
  expect_append_attention({{1, 300, 6, 2, 128, 128, 400},
                           {1, 77, 6, 2, 64, 32, 1500},
                           {1, 1499, 6, 2, 64, 64, 1500, 200},
                           {1, 200, 4, 2, 88, 80, 300},
                           {5, 30, 6, 2, 64, 64, 300}});
}

TEST_P(AttentionConformance, AppendedTokensAreSeenBehindManyOthers) {
  expect_append_attention({{1, 700, 14, 2, 64, 64, 701}, {1, 5000, 6, 2, 128, 64, 5100}});
}

}  // namespace
}  // namespace wick
