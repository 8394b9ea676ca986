// Lays sequences end to end.
#include "wick/models/token_batch.h"

#include <algorithm>
#include <numeric>

#include "wick/base/error.h"

namespace wick {

Tensor upload_ids(Backend& backend, std::span<const int32_t> values, const Shape& shape) {
  Tensor tensor = backend.allocate(shape, DType::i32);
  backend.upload(std::as_bytes(values), tensor);
  return tensor;
}

TokenBatch make_token_batch(Backend& backend, std::span<const std::vector<int32_t>> sequences) {
  check(!sequences.empty(), "batch: there is no sequence");
  TokenBatch batch;
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> spans;
  for (const std::vector<int32_t>& sequence : sequences) {
    check(!sequence.empty(), "batch: sequence {} is empty", spans.size() / 4);
    const auto begin = static_cast<int32_t>(ids.size());
    const auto size = static_cast<int32_t>(sequence.size());
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    positions.resize(ids.size());
    std::iota(positions.begin() + begin, positions.end(), 0);
    spans.insert(spans.end(), {begin, size, begin, size});
    batch.end_position = std::max<int64_t>(batch.end_position, size);
  }
  const auto [least, largest] = std::minmax_element(ids.begin(), ids.end());
  check(*least >= 0, "batch: token id {} is negative", *least);
  batch.largest_id = *largest;
  const auto tokens = static_cast<int64_t>(ids.size());
  batch.ids = upload_ids(backend, ids, {tokens});
  batch.positions = upload_ids(backend, positions, {tokens});
  batch.spans = upload_ids(backend, spans, {static_cast<int64_t>(sequences.size()), 4});
  return batch;
}

TokenBatch make_next_batch(Backend& backend, std::span<const int32_t> ids, int64_t past) {
  check(!ids.empty(), "batch: there is no token");
  const auto tokens = static_cast<int64_t>(ids.size());
  const auto [least, largest] = std::minmax_element(ids.begin(), ids.end());
  check(*least >= 0, "batch: token id {} is negative", *least);
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(past));
  const int32_t span[] = {0, static_cast<int32_t>(tokens), 0, static_cast<int32_t>(past + tokens)};
  return {.ids = upload_ids(backend, ids, {tokens}),
          .positions = upload_ids(backend, positions, {tokens}),
          .spans = upload_ids(backend, span, {1, 4}),
          .past = past,
          .end_position = past + tokens,
          .largest_id = *largest};
}

}  // namespace wick
