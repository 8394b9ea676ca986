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

HostBatch lay_out(std::span<const std::vector<int32_t>> sequences) {
  check(!sequences.empty(), "batch: there is no sequence");
  HostBatch batch;
  for (const std::vector<int32_t>& sequence : sequences) {
    check(!sequence.empty(), "batch: sequence {} is empty", batch.runs());
    const auto begin = static_cast<int32_t>(batch.ids.size());
    const auto size = static_cast<int32_t>(sequence.size());
    batch.ids.insert(batch.ids.end(), sequence.begin(), sequence.end());
    batch.positions.resize(batch.ids.size());
    std::iota(batch.positions.begin() + begin, batch.positions.end(), 0);
    batch.spans.insert(batch.spans.end(), {begin, size, begin, size});
    batch.end_position = std::max<int64_t>(batch.end_position, size);
  }
  const auto [least, largest] = std::minmax_element(batch.ids.begin(), batch.ids.end());
  check(*least >= 0, "batch: token id {} is negative", *least);
  batch.largest_id = *largest;
  return batch;
}

void HostBatch::pad(int64_t tokens, int64_t runs) {
  const auto begin = static_cast<int32_t>(ids.size());
  const auto count = static_cast<int32_t>(tokens - this->tokens());
  if (count > 0) {
    ids.resize(static_cast<size_t>(tokens), 0);
    positions.resize(static_cast<size_t>(tokens));
    std::iota(positions.begin() + begin, positions.end(), 0);
    spans.insert(spans.end(), {begin, count, begin, count});
    end_position = std::max<int64_t>(end_position, count);
  }
  while (this->runs() < runs) {
    const auto end = static_cast<int32_t>(tokens);
    spans.insert(spans.end(), {end, 0, end, 0});
  }
}

TokenBatch allocate_token_batch(Backend& backend, int64_t tokens, int64_t runs) {
  TokenBatch batch;
  batch.all = backend.allocate({2 * tokens + 4 * runs}, DType::i32);
  batch.ids = batch.all.part(0, {tokens});
  batch.positions = batch.all.part(tokens, {tokens});
  batch.spans = batch.all.part(2 * tokens, {runs, 4});
  return batch;
}

void upload(Backend& backend, const HostBatch& host, TokenBatch& batch) {
  std::vector<int32_t> all;
  all.reserve(static_cast<size_t>(batch.all.elements()));
  for (const std::vector<int32_t>* part : {&host.ids, &host.positions, &host.spans}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  backend.upload(std::as_bytes(std::span(all)), batch.all);
  batch.end_position = host.end_position;
  batch.largest_id = host.largest_id;
}

TokenBatch make_token_batch(Backend& backend, std::span<const std::vector<int32_t>> sequences) {
  const HostBatch host = lay_out(sequences);
  TokenBatch batch = allocate_token_batch(backend, host.tokens(), host.runs());
  upload(backend, host, batch);
  return batch;
}

namespace {

constexpr int64_t kPlaceValues = 5;  // a position and a span

// Tokens that follow `past` others of their sequence.
HostBatch lay_out_next(std::span<const int32_t> ids, int64_t past) {
  check(!ids.empty(), "batch: there is no token");
  HostBatch batch;
  batch.ids.assign(ids.begin(), ids.end());
  const auto [least, largest] = std::minmax_element(ids.begin(), ids.end());
  check(*least >= 0, "batch: token id {} is negative", *least);
  batch.largest_id = *largest;
  batch.positions.resize(ids.size());
  std::iota(batch.positions.begin(), batch.positions.end(), static_cast<int32_t>(past));
  batch.end_position = past + batch.tokens();
  batch.spans = {0, static_cast<int32_t>(ids.size()), 0, static_cast<int32_t>(batch.end_position)};
  return batch;
}

}  // namespace

TokenBatch make_next_batch(Backend& backend, std::span<const int32_t> ids, int64_t past) {
  const HostBatch host = lay_out_next(ids, past);
  TokenBatch batch = allocate_token_batch(backend, host.tokens(), 1);
  upload(backend, host, batch);
  batch.past = past;
  return batch;
}

void set_next_token(Backend& backend, int32_t id, int64_t past, TokenBatch& batch) {
  upload(backend, lay_out_next(std::span(&id, 1), past), batch);
  batch.past = past;
}

Tensor lay_out_places(Backend& backend, int64_t past, int64_t count) {
  constexpr int32_t kAnyId = 0;
  std::vector<int32_t> places;
  for (int64_t i = 0; i < count; ++i) {
    const HostBatch token = lay_out_next(std::span(&kAnyId, 1), past + i);
    places.insert(places.end(), token.positions.begin(), token.positions.end());
    places.insert(places.end(), token.spans.begin(), token.spans.end());
  }
  return upload_ids(backend, places, {count, kPlaceValues});
}

void set_next_place(Backend& backend, const Tensor& place, int64_t past, TokenBatch& batch) {
  backend.copy(place, batch.all.slice(batch.tokens(), kPlaceValues));
  batch.past = past;
  batch.end_position = past + 1;
  batch.largest_id = 0;
}

}  // namespace wick
