// What follows from the exchanges of a Communicator.
#include "wick/core/communicator.h"

#include <numeric>

namespace wick {

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::string broadcast_text(Communicator& ranks, std::string text) {
  uint64_t size = text.size();
  ranks.broadcast(std::as_writable_bytes(std::span(&size, 1)));
  text.resize(size);
  ranks.broadcast(std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace wick
